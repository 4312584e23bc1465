"""feast-dynamo refresh: what it says where it cannot begin."""

from __future__ import annotations

from click.testing import CliRunner

from feast_dynamo_ext.cli.main import main


def said(folder) -> str:
    result = CliRunner().invoke(main, ["refresh", "-c", str(folder)])
    assert result.exit_code == 1
    return result.stderr.strip()


def test_a_folder_without_a_repo_or_a_pipeline_is_named(tmp_path):
    assert said(tmp_path) == (
        f"error: There is no feature_store.yaml in {tmp_path}. Run this in a feature repo, or "
        "name one: --chdir PATH."
    )
    (tmp_path / "feature_store.yaml").write_text("project: p\nprovider: local\n")
    assert said(tmp_path) == (
        f"error: {tmp_path / 'pipelines'} has no pipeline. Declare one there, in a file NAME.yaml."
    )
    (tmp_path / "pipelines").mkdir()
    for name in ("churn", "again"):
        (tmp_path / "pipelines" / f"{name}.yaml").write_text("")
    assert said(tmp_path) == f"error: {tmp_path / 'pipelines'} has 2: again, churn. Name one."
