//! Many invocations of each function's one process, with faults among them: its memory, open files and connections stay
//! what they are. `./local/soak` does the same at length.

use std::path::Path;

use bytes::Bytes;
use http::Response;
use jiff::Timestamp;
use local::aws::Fault;
use serde_json::{Value, json};
use tests::{Binary, GROUP, Stack};

/// The environment variable with the number of invocations.
const INVOCATIONS: &str = "SOAK_INVOCATIONS";
/// Those of a run of all tests, which only show what grows with every invocation.
const FEW: u64 = 300;
/// From here on, each half has seen everything that happens, many times.
const MANY: u64 = 5000;

/// By how much the second half may exceed the first: KiB of memory, and open files or connections. With 30,000
/// invocations, a leak of some hundred bytes in each of a function's shows, and one of a connection in several hundred.
fn tolerances(invocations: u64) -> (u64, u64) {
    if invocations < MANY { (8 * 1024, 40) } else { (1536, 10) }
}

/// What a process has.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Without the pages of its file, which the kernel drops and reads again.
    memory_kib: u64,
    /// With them.
    resident_kib: u64,
    files: u64,
    connections: u64,
}

type Measure = fn(&Sample) -> u64;

impl Sample {
    /// From proc(5).
    fn of(process: u32) -> Self {
        let folder = Path::new("/proc").join(process.to_string());
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
        let status = read("status");
        let kib = |name: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        let files = std::fs::read_dir(folder.join("fd")).unwrap().flatten();
        let files: Vec<_> = files.filter_map(|file| std::fs::read_link(file.path()).ok()).collect();
        let is_own = |inode: &str| files.iter().any(|file| file.as_os_str() == format!("socket:[{inode}]").as_str());
        let tcp = read("net/tcp");
        // The columns `st`, of which 01 is ESTABLISHED, and `inode`.
        let columns = tcp.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let connections =
            columns.filter(|columns| columns.get(3) == Some(&"01") && columns.get(9).is_some_and(|it| is_own(it)));
        Self {
            memory_kib: kib("RssAnon:"),
            resident_kib: kib("VmRSS:"),
            files: files.len() as u64,
            connections: connections.count() as u64,
        }
    }
}

/// A value at the begin, in the middle and at the end, and its maximum in each half; the first fifth, in which caches and
/// pools fill, does not count.
fn halves(samples: &[Sample], value: Measure) -> ([u64; 3], [u64; 2]) {
    let warm: Vec<u64> = samples[samples.len() / 5..].iter().map(value).collect();
    let (first, second) = warm.split_at(warm.len() / 2);
    let most = |half: &[u64]| half.iter().copied().max().unwrap();
    ([warm[0], second[0], warm[warm.len() - 1]], [most(first), most(second)])
}

struct Soak {
    stack: Stack,
    round: usize,
    samples: [Vec<Sample>; 3],
    own: Vec<Sample>,
}

impl Soak {
    async fn start() -> Self {
        let mut stack = Stack::with(|config| {
            let template = &mut config["clouds"][1]["templates"][0];
            template["allowedOverrides"] = json!(["environment", "taskDefinition"]);
            template["allowedTaskDefinitions"] = json!(["jenkins-*"]);
        })
        .await;
        stack.set_env("AWS_LAMBDA_LOG_LEVEL", Some("INFO"));
        {
            // Rounds follow each other faster than ECS' quotas allow, and faster than an hour forgets tasks.
            let mut aws = stack.aws();
            let settings = aws.ecs.settings();
            (settings.quotas, settings.run_task_rate) = (None, None);
            settings.remember_stopped = std::time::Duration::from_secs(10);
        }
        Self { stack, round: 0, samples: Default::default(), own: Vec::new() }
    }

    /// Those of each function.
    async fn invocations(&mut self) -> [u64; 3] {
        let mut counts = [0; 3];
        for (count, binary) in counts.iter_mut().zip(Binary::ALL) {
            *count = self.stack.function(binary).await.invocations();
        }
        counts
    }

    /// Ten builds, and whatever goes wrong besides.
    async fn round(&mut self) {
        self.round += 1;
        let round = self.round;
        // The SDK waits up to a second before it tries again.
        if round.is_multiple_of(2) {
            self.fail_calls();
        }
        // One message after the other, or in batches.
        let is_slow = !round.is_multiple_of(4);
        for number in 0..10 {
            let label = ["maven", "node", "dial"][number % 3];
            let url = self.stack.webhook();
            if number == round % 10 {
                let path = url.strip_prefix(self.stack.jenkins_root()).unwrap();
                let away = Response::builder().status(503).body(Bytes::new()).unwrap();
                self.stack.jenkins().script(path, [away]);
            }
            self.stack.ask(json!({"requestId": format!("soak-{round}-{number}"), "label": label, "webhookUrl": url}));
            if is_slow {
                self.stack.poll(Binary::Request, "requests").await;
            }
        }
        self.send_nonsense();
        self.settle().await;
        let tasks = self.stack.active_tasks();
        assert!(!tasks.is_empty(), "round {round}: no agent runs");
        for (number, task) in tasks.iter().enumerate() {
            self.stack.complete(match number % 2 {
                0 => json!({"taskArn": task.arn}),
                _ => json!({"agent": task.started_by, "build": {"job": "soak", "number": round}, "result": "SUCCESS"}),
            });
            if is_slow {
                self.stack.poll(Binary::Teardown, "completions").await;
            }
        }
        if round.is_multiple_of(5) {
            self.stack.jenkins_goes_down();
            self.settle().await;
            self.stack.jenkins_comes_back().await;
        }
        self.settle().await;
        if round.is_multiple_of(4) {
            // New instances have other ARNs and addresses.
            self.stack.aws().ecs.fill_group(GROUP, (round / 4 % 2) as u32, Timestamp::now());
            self.stack.sweep().await;
        }
        self.settle().await;
        self.stack.forget_the_past();
        for (samples, binary) in self.samples.iter_mut().zip(Binary::ALL) {
            samples.push(Sample::of(self.stack.function(binary).await.id().unwrap()));
        }
        self.own.push(Sample::of(std::process::id()));
    }

    /// Processes everything, including what was put off.
    async fn settle(&mut self) {
        self.stack.settle().await;
        for queue in ["requests", "completions", "undelivered", "waiting"] {
            self.stack.unhide(queue);
        }
        self.stack.settle().await;
    }

    /// Some of the next calls of an action fail: throttled, refused, or with the connection cut before the answer.
    fn fail_calls(&self) {
        let actions = [
            ("ecs", "RunTask"),
            ("ecs", "DescribeTasks"),
            ("ecs", "StopTask"),
            ("ecs", "TagResource"),
            ("sqs", "SendMessage"),
            ("sqs", "ChangeMessageVisibility"),
            ("autoscaling", "DescribeAutoScalingGroups"),
        ];
        let (service, action) = actions[self.round / 2 % actions.len()];
        let fault = match self.round / 2 % 3 {
            0 => Fault::throttled_by(service),
            1 => Fault::server(),
            _ => Fault::Lost,
        };
        let mut aws = self.stack.aws();
        aws.faults.script(service, action, [None, Some(fault)]);
    }

    /// Messages and lists that no sender of ours sends.
    fn send_nonsense(&self) {
        let round = self.round;
        let malformed = ["no JSON", "{\"version\": 2}", "[[[[[[[[", "{\"Type\": \"Notification\", \"Message\": \"\"}"];
        for queue in ["requests", "completions", "undelivered"] {
            self.stack.send(queue, malformed[round % malformed.len()]);
        }
        let variables: serde_json::Map<_, _> =
            (0..100).map(|number| (format!("V{number}"), Value::from("x".repeat(500)))).collect();
        for overrides in [json!({"environment": variables}), json!({"taskDefinition": format!("jenkins-{round}")})] {
            let id = format!("nonsense-{round}-{}", overrides.to_string().len());
            self.stack.ask(
                json!({"requestId": id, "label": "node", "webhookUrl": self.stack.webhook(), "overrides": overrides}),
            );
        }
        self.stack.send("requests", &"x".repeat(200_000));
    }
}

#[tokio::test]
async fn processes_hold_no_more_after_many_invocations() {
    let most = std::env::var(INVOCATIONS).map_or(FEW, |number| number.parse().unwrap()).max(FEW);
    let mut soak = Soak::start().await;
    while soak.invocations().await.iter().sum::<u64>() < most {
        soak.round().await;
    }
    println!("{:?} invocations of request, task-state and teardown in {} rounds", soak.invocations().await, soak.round);
    println!("after the warm-up, in the middle, at the end; the maxima of the halves:");
    let own = ("simulators", soak.own.as_slice());
    let functions = ["request", "task-state", "teardown"].into_iter().zip(soak.samples.iter().map(Vec::as_slice));
    let (memory, files) = tolerances(most);
    let mut grown = Vec::new();
    for (name, samples) in functions.chain([own]) {
        let values: [(&str, Measure, Option<u64>); 4] = [
            ("memory, KiB", |sample| sample.memory_kib, Some(memory)),
            ("resident, KiB", |sample| sample.resident_kib, None),
            ("open files", |sample| sample.files, Some(files)),
            ("connections", |sample| sample.connections, Some(files)),
        ];
        for (what, value, tolerance) in values {
            let ([begin, middle, end], [first, second]) = halves(samples, value);
            println!("{name:<11}{what:<14}{begin:>8}{middle:>8}{end:>8}{first:>10}{second:>8}");
            if name != own.0 && tolerance.is_some_and(|tolerance| second > first + tolerance) {
                grown.push(format!("{name}: {what}: {first}, then {second}"));
            }
        }
    }
    assert!(grown.is_empty(), "the second half exceeds the first: {grown:#?}");
}
