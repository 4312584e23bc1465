"""From history to a registered model, declared once: on SageMaker Pipelines or on this machine.

`read_pipeline` reads a declaration, `render` makes SageMaker's definition of it, `upsert_pipeline`
and `upsert_schedule` put it there, and `run_pipeline_locally` runs the same steps here.
"""
