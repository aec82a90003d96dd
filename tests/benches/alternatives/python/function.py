"""What a user would write in Python with boto3: RunTask for each request of a batch, ten at once.

Fetches its events from Lambda's Runtime API itself, which is less than `awslambdaric` does.
"""

import hashlib
import http.client
import json
import os
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config

CONFIG = json.loads(os.environ["AGENTS"])
ECS = boto3.client("ecs", config=Config(max_pool_connections=10, retries={"mode": "standard"}))
POOL = ThreadPoolExecutor(10)


def start(record):
    request = json.loads(record["body"])
    labels = {label.strip() for label in request["label"].split("&&")}
    template = next(template for template in CONFIG["templates"] if labels <= set(template["labels"]))
    digest = hashlib.sha256(f"{request['requestId']} 0".encode()).hexdigest()
    name = f"ecs-{template['name']}-{digest[:12]}"
    answer = ECS.run_task(
        cluster=CONFIG["cluster"],
        taskDefinition=template["taskDefinition"],
        count=1,
        launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": template["network"]},
        startedBy=name,
        clientToken=digest,
        overrides={"containerOverrides": [{"name": template["container"], "environment": [
            {"name": "JENKINS_ECS_AGENTS_REQUEST", "value": json.dumps(request)}]}]},
        tags=[{"key": "jenkins-ecs-agents:controller", "value": CONFIG["controller"]}],
    )
    task = answer["tasks"][0]["taskArn"]
    print(json.dumps({"message": "task started", "request.id": request["requestId"], "task.arn": task}), flush=True)


def attempt(record):
    try:
        start(record)
    except Exception as error:
        print(json.dumps({"message": str(error)}), flush=True)
        return record["messageId"]


def handle(event):
    failed = [failed for failed in POOL.map(attempt, event["Records"]) if failed]
    return {"batchItemFailures": [{"itemIdentifier": failed} for failed in failed]}


def main():
    runtime = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    while True:
        runtime.request("GET", "/2018-06-01/runtime/invocation/next")
        response = runtime.getresponse()
        event = json.loads(response.read())
        answer = json.dumps(handle(event))
        invocation = response.headers["lambda-runtime-aws-request-id"]
        runtime.request("POST", f"/2018-06-01/runtime/invocation/{invocation}/response", answer)
        runtime.getresponse().read()


main()
