"""Commands of a feature repo as jobs on AWS: Glue, EMR Serverless and SageMaker Processing."""
