// What a user would write in Node with the AWS SDK v3: RunTask for each request of a batch, ten at once.
// Fetches its events from Lambda's Runtime API itself, which is less than Lambda's own runtime client does.

import { createHash } from 'node:crypto';
import http from 'node:http';
import { ECSClient, RunTaskCommand } from '@aws-sdk/client-ecs';

const config = JSON.parse(process.env.AGENTS);
const ecs = new ECSClient({});

async function start(record) {
  const request = JSON.parse(record.body);
  const labels = request.label.split('&&').map((label) => label.trim());
  const template = config.templates.find((template) => labels.every((label) => template.labels.includes(label)));
  const digest = createHash('sha256').update(`${request.requestId} 0`).digest('hex');
  const answer = await ecs.send(new RunTaskCommand({
    cluster: config.cluster,
    taskDefinition: template.taskDefinition,
    count: 1,
    launchType: 'FARGATE',
    networkConfiguration: { awsvpcConfiguration: template.network },
    startedBy: `ecs-${template.name}-${digest.slice(0, 12)}`,
    clientToken: digest,
    overrides: { containerOverrides: [{ name: template.container, environment: [
      { name: 'JENKINS_ECS_AGENTS_REQUEST', value: JSON.stringify(request) }] }] },
    tags: [{ key: 'jenkins-ecs-agents:controller', value: config.controller }],
  }));
  const task = answer.tasks[0].taskArn;
  console.log(JSON.stringify({ message: 'task started', 'request.id': request.requestId, 'task.arn': task }));
}

async function handle(event) {
  const results = await Promise.allSettled(event.Records.map(start));
  const failed = event.Records.filter((_, index) => results[index].status === 'rejected');
  for (const result of results.filter((result) => result.status === 'rejected')) {
    console.log(JSON.stringify({ message: String(result.reason) }));
  }
  return { batchItemFailures: failed.map((record) => ({ itemIdentifier: record.messageId })) };
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(':');

function runtime(method, path, body) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host, port, agent, method, path: `/2018-06-01/runtime/invocation/${path}` }, (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      response.on('end', () => resolve({ headers: response.headers, body: Buffer.concat(chunks) }));
    });
    request.on('error', reject);
    request.end(body);
  });
}

while (true) {
  const { headers, body } = await runtime('GET', 'next');
  const answer = await handle(JSON.parse(body));
  await runtime('POST', `${headers['lambda-runtime-aws-request-id']}/response`, JSON.stringify(answer));
}
