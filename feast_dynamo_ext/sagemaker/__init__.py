"""From a point-in-time join to what a SageMaker training job reads."""
