"""The feast-dynamo command: its groups, and the one place where errors become exit codes."""

from __future__ import annotations

from typing import Any

import click

from feast_dynamo_ext import __version__
from feast_dynamo_ext.cli.bulk_load import bulk_load
from feast_dynamo_ext.cli.capture import capture
from feast_dynamo_ext.cli.capture_stream import stream
from feast_dynamo_ext.cli.cohort import cohort
from feast_dynamo_ext.cli.endpoint import endpoint
from feast_dynamo_ext.cli.history_table import table
from feast_dynamo_ext.cli.local import local
from feast_dynamo_ext.cli.materialize import materialize
from feast_dynamo_ext.cli.pipeline import pipeline
from feast_dynamo_ext.cli.refresh import refresh
from feast_dynamo_ext.cli.repo import InOrder
from feast_dynamo_ext.cli.start import docs, init
from feast_dynamo_ext.cli.submit import submit
from feast_dynamo_ext.cli.train import train
from feast_dynamo_ext.cli.training_sets import training_set
from feast_dynamo_ext.errors import FeastDynamoError


class ErrorsAsExitCode(InOrder):
    """A group whose commands fail with one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click's own usage errors keep exit code 2."""
        try:
            return super().invoke(ctx)
        except FeastDynamoError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)


@click.group(cls=ErrorsAsExitCode, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="feast-dynamo")
def main() -> None:
    """Feast on AWS: DynamoDB online, Parquet on S3 offline, training sets for SageMaker.

    Begin with a small repo that runs on this machine; it says what to do next:

    \b
    feast-dynamo init shop

    Exit codes: 0 done, 1 failed (one line `error: ...` on stderr), 2 wrong usage.
    """  # noqa: D301 - click keeps the lines after \b as they are


main.add_command(init)
main.add_command(local)
main.add_command(materialize)
main.add_command(bulk_load)
main.add_command(cohort)
main.add_command(table)
main.add_command(capture)
capture.add_command(stream)
main.add_command(training_set)
main.add_command(train)
main.add_command(refresh)
main.add_command(pipeline)
main.add_command(endpoint)
main.add_command(submit)
main.add_command(docs)

if __name__ == "__main__":
    main(prog_name="feast-dynamo")
