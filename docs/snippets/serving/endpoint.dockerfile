FROM python:3.12-slim
RUN pip install --no-cache-dir "feast-dynamo-ext[serving]" xgboost-cpu
# SageMaker runs the image with the argument `serve`.
ENTRYPOINT ["feast-dynamo", "endpoint"]
