use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::answers::encode;
use super::form::{INBOUND_LAUNCHER, SSH_LAUNCHER, default_launcher};
use super::*;

const ROOT: &str = "http://127.0.0.1:8080/jenkins/";
const AT: Timestamp = Timestamp::UNIX_EPOCH;

fn jenkins() -> Jenkins {
    let mut jenkins = Jenkins::new(ROOT);
    jenkins.add_user("bot", "t0ken", Permission::FOR_AGENTS);
    jenkins.add_user("reader", "t0ken", [Permission::Read]);
    jenkins.add_user("nobody", "t0ken", []);
    jenkins
}

/// A request as `bot`, with its API token.
fn ask(jenkins: &mut Jenkins, method: &str, path: &str) -> Response<Bytes> {
    ask_as(jenkins, "bot", method, path, "")
}

fn ask_as(jenkins: &mut Jenkins, user: &str, method: &str, path: &str, body: &str) -> Response<Bytes> {
    let basic = format!("Basic {}", BASE64.encode(format!("{user}:t0ken")));
    let headers = [("authorization", basic.as_str()), ("content-type", "application/x-www-form-urlencoded")];
    send(jenkins, method, path, &headers, body)
}

fn send(jenkins: &mut Jenkins, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response<Bytes> {
    let mut request = Request::builder().method(method).uri(format!("/jenkins/{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    jenkins.handle(request.body(Bytes::copy_from_slice(body.as_bytes())).expect("a request"), AT)
}

fn status(response: &Response<Bytes>) -> u16 {
    response.status().as_u16()
}

fn header<'a>(response: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().expect("ASCII"))
}

fn body(response: &Response<Bytes>) -> &str {
    std::str::from_utf8(response.body()).expect("UTF-8")
}

fn json(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).expect("JSON")
}

fn create(jenkins: &mut Jenkins, name: &str, form: &Value) -> Response<Bytes> {
    let body = url::form_urlencoded::Serializer::new(String::new()).append_pair("json", &form.to_string()).finish();
    let path = format!("computer/doCreateItem?name={}&type=hudson.slaves.DumbSlave", encode(name));
    ask_as(jenkins, "bot", "POST", &path, &body)
}

fn create_xml(jenkins: &mut Jenkins, name: &str, xml: &str) -> Response<Bytes> {
    let basic = format!("Basic {}", BASE64.encode("bot:t0ken"));
    let headers = [("authorization", basic.as_str()), ("content-type", "application/xml;charset=UTF-8")];
    send(jenkins, "POST", &format!("computer/createItem?name={}", encode(name)), &headers, xml)
}

fn inbound() -> Value {
    json!({"remoteFS": "/home/jenkins", "launcher": {"$class": INBOUND_LAUNCHER, "webSocket": true}})
}

fn ssh() -> Value {
    json!({
        "name": "ignored",
        "nodeDescription": "for <job> & co",
        "numExecutors": "2",
        "remoteFS": "/home/jenkins",
        "labelString": " linux maven ",
        "mode": "EXCLUSIVE",
        "": ["what the page has besides"],
        "launcher": {
            "stapler-class": SSH_LAUNCHER,
            "$class": SSH_LAUNCHER,
            "host": " 10.0.1.5 ",
            "port": 32768,
            "credentialsId": "key",
            "launchTimeoutSeconds": 0,
            "maxNumRetries": "3",
            "javaPath": "",
            "prefixStartSlaveCmd": "bash -l -c '",
            "sshHostKeyVerificationStrategy": {
                "$class": "hudson.plugins.sshslaves.verifiers.ManuallyProvidedKeyVerificationStrategy",
                "key": "ssh-ed25519 AAAA",
            },
        },
        "retentionStrategy": {"$class": "hudson.slaves.RetentionStrategy$Always"},
        "nodeProperties": {
            "stapler-class-bag": "true",
            "hudson-slaves-EnvironmentVariablesNodeProperty": {
                "env": [{"key": "PATH", "value": "a"}, {"key": "path", "value": "b"}, {"key": "X", "value": "[\"y\"]"}],
            },
            "some-plugin-Property": {},
        },
    })
}

#[test]
fn a_node_is_created_by_the_form_of_its_page() {
    let mut jenkins = jenkins();
    let created = create(&mut jenkins, " ecs-a ", &ssh());
    assert_eq!((status(&created), header(&created, "location")), (302, Some("/jenkins/computer/")));
    assert_eq!(header(&created, "x-jenkins"), None, "a redirect does not name Jenkins");
    let node = jenkins.node("ecs-a").expect("the node");
    assert_eq!((node.executors, node.mode, node.label_string.as_str()), (2, Mode::Exclusive, "linux maven"));
    assert_eq!(node.description, "for <job> & co");
    assert_eq!(node.labels(), ["ecs-a", "linux", "maven"].map(str::to_owned).into());
    assert_eq!(node.created_by, "bot");
    let variables = [("PATH", "b"), ("X", "[\"y\"]")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(node.environment, variables.into(), "names are the same whatever their case");
    let Launcher::Ssh(launcher) = &node.launcher else { panic!("an SSH launcher") };
    assert_eq!((launcher.host.as_deref(), launcher.port), (Some("10.0.1.5"), 32768));
    assert_eq!((launcher.launch_timeout_seconds, launcher.max_num_retries, launcher.retry_wait_time), (60, 3, 15));
    assert_eq!((&launcher.java_path, launcher.tcp_no_delay), (&None, true));
    assert_eq!(launcher.host_key_verification, Some(HostKeyVerification::Key("ssh-ed25519 AAAA".into())));
}

#[test]
fn a_taken_or_bad_name_is_a_400_with_the_reason() {
    let mut jenkins = jenkins();
    assert_eq!(status(&create(&mut jenkins, "a", &inbound())), 302);
    let refused = |jenkins: &mut Jenkins, name: &str| {
        let response = create(jenkins, name, &inbound());
        assert_eq!((status(&response), header(&response, "x-jenkins")), (400, Some("2.579")), "{name}");
        assert!(!body(&response).contains("</p>"), "{name}");
        body(&response).split("<p>").nth(1).and_then(|rest| rest.split("<!--").next()).expect("a paragraph").to_owned()
    };
    assert_eq!(refused(&mut jenkins, "a"), "Agent called ‘a’ already exists");
    assert_eq!(refused(&mut jenkins, "  "), "Query parameter 'name' is required");
    assert_eq!(refused(&mut jenkins, ".."), "“..” is not an allowed name");
    assert_eq!(refused(&mut jenkins, "a."), "A name cannot end with ‘.’");
    assert_eq!(refused(&mut jenkins, "a\tb"), "No control code is allowed: a\\u9;b");
    for letter in "?*/\\%!@#$^&|<>[]:;".chars() {
        let said = refused(&mut jenkins, &format!("a{letter}b"));
        let shown = letter.to_string().replace('&', "&amp;").replace('<', "&lt;");
        assert_eq!(said, format!("‘{shown}’ is an unsafe character"));
    }
    let bad = create(&mut jenkins, "a*", &inbound());
    assert_eq!(header(&bad, "x-error"), None, "Latin-1 has no typographic quotes");
    assert!(body(&bad).contains("<title>Jenkins - Jenkins</title>"));
    assert_eq!(jenkins.nodes().count(), 1);
}

#[test]
fn a_form_that_cannot_be_bound_is_a_500() {
    let mut jenkins = jenkins();
    let mut faulty = |change: &dyn Fn(&mut Value)| {
        let mut form = ssh();
        change(&mut form);
        let response = create(&mut jenkins, "a", &form);
        assert_eq!((status(&response), header(&response, "x-jenkins")), (500, Some("2.579")), "{form}");
        assert!(!body(&response).contains("class"), "the reason is in the log alone");
    };
    faulty(&|form| form["mode"] = json!("NONE"));
    faulty(&|form| form["numExecutors"] = json!(""));
    faulty(&|form| form["launcher"] = json!({"host": "a"}));
    faulty(&|form| form["launcher"]["$class"] = json!(["a", "b"]));
    faulty(&|form| form["launcher"]["$class"] = json!("hudson.plugins.sshslaves.Launcher"));
    faulty(&|form| form["launcher"]["sshHostKeyVerificationStrategy"]["key"] = json!("AAAA"));
    let path = "computer/doCreateItem?name=a&type=";
    assert_eq!(status(&ask_as(&mut jenkins, "bot", "POST", path, "json={}")), 500);
    let path = "computer/doCreateItem?name=a&type=hudson.slaves.DumbSlave";
    assert_eq!(status(&ask(&mut jenkins, "POST", path)), 400, "no form");
    assert_eq!(status(&ask_as(&mut jenkins, "bot", "POST", path, "json=nonsense")), 500);
    assert_eq!(jenkins.nodes().count(), 0);
    // The minimum; the launcher is then an inbound one, without WebSocket.
    assert_eq!(status(&ask_as(&mut jenkins, "bot", "POST", path, "json={}")), 302);
    assert_eq!(jenkins.node("a").map(|node| node.launcher.clone()), Some(default_launcher()));
}

const XML: &str = "<?xml version='1.1' encoding='UTF-8'?>
    <slave>
      <name>other</name>
      <description>for &lt;job&gt;&#10;&amp; co</description>
      <remoteFS>/home/jenkins</remoteFS>
      <numExecutors>1</numExecutors>
      <mode>EXCLUSIVE</mode>
      <retentionStrategy class='hudson.slaves.RetentionStrategy$Always'/>
      <launcher class='hudson.plugins.sshslaves.SSHLauncher' plugin='ssh-slaves@3'>
        <host>10.0.1.5</host><port>22</port><credentialsId>key</credentialsId>
        <launchTimeoutSeconds>210</launchTimeoutSeconds><maxNumRetries>0</maxNumRetries>
        <sshHostKeyVerificationStrategy
          class='hudson.plugins.sshslaves.verifiers.ManuallyProvidedKeyVerificationStrategy'>
          <key><algorithm>ssh-ed25519</algorithm><key>AAAA</key></key>
        </sshHostKeyVerificationStrategy>
      </launcher>
      <label>linux</label>
      <nodeProperties>
        <hudson.slaves.EnvironmentVariablesNodeProperty>
          <envVars serialization='custom'><unserializable-parents/><tree-map>
            <default><comparator class='java.lang.String$CaseInsensitiveComparator'/></default>
            <int>2</int><string>a</string><string>1</string><string>B</string><string></string>
          </tree-map></envVars>
        </hudson.slaves.EnvironmentVariablesNodeProperty>
      </nodeProperties>
      <unknown/>
    </slave>";

#[test]
fn a_node_is_created_by_its_file() {
    let mut jenkins = jenkins();
    let created = create_xml(&mut jenkins, "ecs-a", XML);
    assert_eq!((status(&created), body(&created)), (200, ""));
    let node = jenkins.node("ecs-a").expect("the name of the query").clone();
    assert_eq!((node.description.as_str(), node.mode), ("for <job>\n& co", Mode::Exclusive));
    assert_eq!(node.environment, [("a", "1"), ("B", "")].map(|(name, value)| (name.into(), value.into())).into());
    let Launcher::Ssh(launcher) = node.launcher else { panic!("an SSH launcher") };
    assert_eq!((launcher.launch_timeout_seconds, launcher.max_num_retries), (60, 0));
    assert_eq!(launcher.host_key_verification, Some(HostKeyVerification::Key("ssh-ed25519 AAAA".into())));

    let again = create_xml(&mut jenkins, "ecs-a", XML);
    assert_eq!((status(&again), header(&again, "x-error")), (400, Some("Node 'ecs-a' already exists")));
    assert_eq!(status(&create_xml(&mut jenkins, "a/b", XML)), 400);
    assert_eq!(status(&create_xml(&mut jenkins, "", XML)), 200);
    assert!(jenkins.node("other").is_some(), "without a name, that of the file");
}

#[test]
fn a_file_is_read_as_xstream_reads_it() {
    let mut jenkins = jenkins();
    for (from, to) in [("</slave>", ""), ("<int>2</int>", "<int>1</int>"), ("<string>a</string>", "<string>c</string>")]
    {
        assert_eq!(status(&create_xml(&mut jenkins, "a", &XML.replace(from, to))), 500, "{from}");
    }
    // It silently drops what it does not know.
    let left_out = |from: &str, to: &str| {
        let mut jenkins = super::tests::jenkins();
        if from.is_empty() {
            jenkins.remove_plugin("ssh-slaves");
        }
        assert_eq!(status(&create_xml(&mut jenkins, "a", &XML.replace(from, to))), 200, "{from}");
        jenkins.node("a").expect("the node").clone()
    };
    assert_eq!(left_out("SSHLauncher'", "Launcher'").launcher, default_launcher());
    assert_eq!(left_out("", "").launcher, default_launcher(), "without the plugin");
    assert_eq!(left_out("<mode>EXCLUSIVE</mode>", "").mode, Mode::Normal);
    assert_eq!(left_out("<mode>EXCLUSIVE</mode>", "<mode>NONE</mode>").mode, Mode::Normal);
    let unverified = left_out("ManuallyProvidedKeyVerificationStrategy", "Strategy").launcher;
    assert!(matches!(unverified, Launcher::Ssh(launcher) if launcher.host_key_verification.is_none()));
    // No constructor is called: missing values are 0, and a node without executors has no computer.
    assert_eq!(status(&create_xml(&mut jenkins, "a", &XML.replace("<numExecutors>1</numExecutors>", ""))), 200);
    assert_eq!(status(&ask(&mut jenkins, "GET", "computer/a/api/json")), 404);
    // `JNLPLauncher.readResolve`: without settings, the work directory is off.
    let launcher = "<launcher class='hudson.slaves.JNLPLauncher'><webSocket>true</webSocket></launcher>";
    let xml = format!("<slave><numExecutors>1</numExecutors><mode>NORMAL</mode>{launcher}</slave>");
    assert_eq!(status(&create_xml(&mut jenkins, "b", &xml)), 200);
    let Some(Launcher::Inbound(launcher)) = jenkins.node("b").map(|node| node.launcher.clone()) else {
        panic!("an inbound launcher")
    };
    assert_eq!((launcher.web_socket, launcher.work_dir), (true, None));
    // It does not exist before 2.539.
    jenkins.set_version("2.516.3");
    let refused = create_xml(&mut jenkins, "c", XML);
    assert_eq!((status(&refused), header(&refused, "x-error")), (400, Some("No mode given")));
    jenkins.set_version("2.541.1");
    assert_eq!(status(&create_xml(&mut jenkins, "c", XML)), 200);
}

#[test]
fn nodes_are_exported_and_a_tree_selects_fields() {
    let mut jenkins = jenkins();
    create(&mut jenkins, "a", &ssh());
    jenkins.connect_ssh("a");
    jenkins.start_build_on("a", "app #1");
    let all = json(&ask(&mut jenkins, "GET", "computer/api/json"));
    assert_eq!(all["computer"][0]["_class"], "hudson.model.Hudson$MasterComputer");
    assert_eq!(all["computer"][1]["executors"], json!([{}, {}]));
    assert_eq!((&all["busyExecutors"], &all["totalExecutors"]), (&json!(1), &json!(2)));
    let path = "computer/api/json?tree=computer[displayName,idle,executors[idle]]%7B1%7D,totalExecutors";
    let tree = ask(&mut jenkins, "GET", path);
    assert_eq!(header(&tree, "x-jenkins"), Some("2.579"));
    let node = json!({
        "_class": "hudson.slaves.SlaveComputer", "displayName": "a", "idle": false,
        "executors": [{"idle": false}, {"idle": true}],
    });
    assert_eq!(json(&tree), json!({"_class": "hudson.model.ComputerSet", "computer": [node], "totalExecutors": 2}));
    let one = json(&ask(&mut jenkins, "GET", "computer/a/api/json?tree=*"));
    assert_eq!(one["assignedLabels"], json!([{}, {}, {}]));
    assert_eq!(one.get("idleStartMilliseconds"), None);
    for malformed in ["a[", "a]", "", "a,,b", "a%7Bx%7D"] {
        let path = format!("computer/api/json?tree={malformed}");
        assert_eq!(status(&ask(&mut jenkins, "GET", &path)), 500, "{malformed}");
    }
    assert_eq!(status(&ask(&mut jenkins, "GET", "computer/api/json?depth=deep")), 500);
    let missing = ask(&mut jenkins, "GET", "computer/b/api/json");
    assert_eq!((status(&missing), header(&missing, "x-jenkins")), (404, Some("2.579")));
}

#[test]
fn a_node_is_toggled_or_taken_offline() {
    let mut jenkins = jenkins();
    create(&mut jenkins, "a b", &inbound());
    let node = |jenkins: &mut Jenkins| json(&ask(jenkins, "GET", "computer/a%20b/api/json"));
    let fresh = node(&mut jenkins);
    assert_eq!((&fresh["offline"], &fresh["temporarilyOffline"]), (&json!(true), &json!(false)));
    assert_eq!((&fresh["offlineCause"], &fresh["offlineCauseReason"]), (&Value::Null, &json!("")));

    let toggled = ask(&mut jenkins, "POST", "computer/a%20b/toggleOffline?offlineMessage=done:+x+:+y+%26+z");
    assert_eq!((status(&toggled), header(&toggled, "location")), (302, Some("/jenkins/computer/a%20b/")));
    let offline = node(&mut jenkins);
    assert_eq!(offline["temporarilyOffline"], true);
    assert_eq!(offline["offlineCause"]["description"], "Disconnected by bot : done: x : y &amp; z");
    assert_eq!(offline["offlineCauseReason"], "y &amp;amp; z", "all up to the last ` : ` is cut off; HTML, twice");

    assert_eq!(status(&ask(&mut jenkins, "POST", "computer/a%20b/changeOfflineCause?offlineMessage=again")), 302);
    assert_eq!(node(&mut jenkins)["offlineCauseReason"], "again");
    assert_eq!(status(&ask(&mut jenkins, "POST", "computer/a%20b/toggleOffline")), 302);
    assert_eq!(node(&mut jenkins)["temporarilyOffline"], false);
    assert_eq!(status(&ask(&mut jenkins, "POST", "computer/a%20b/changeOfflineCause")), 302);
    assert_eq!(node(&mut jenkins)["temporarilyOffline"], true, "whatever it was before");

    assert_eq!(status(&ask(&mut jenkins, "POST", "computer/a%20b/toggleOffline")), 302);
    jenkins.fail_launch("a b");
    let failed = node(&mut jenkins);
    assert_eq!(failed["temporarilyOffline"], false);
    let reason = "This agent is offline because Jenkins failed to launch the agent process on it.";
    assert_eq!(failed["offlineCauseReason"], reason);
}

#[test]
fn a_pipelines_block_outlives_its_node() {
    let mut jenkins = jenkins();
    create(&mut jenkins, "a", &ssh());
    assert!(jenkins.connect_ssh("a"));
    jenkins.set_quieting_down(true);
    assert_eq!(json(&ask(&mut jenkins, "GET", "api/json"))["quietingDown"], true);
    assert!(!jenkins.start_pipeline_on("a", "app #1"), "nothing starts in quiet-down");
    jenkins.set_quieting_down(false);
    assert!(jenkins.start_pipeline_on("a", "app #1") && jenkins.start_build_on("a", "free #1"));
    assert_eq!(status(&ask(&mut jenkins, "POST", "computer/a/doDelete")), 302);
    assert_eq!(jenkins.killed_builds(), ["free #1"]);
    let fields = "computer/api/json?tree=computer[displayName,description,idle,offline,temporarilyOffline,\
                  offlineCauseReason,assignedLabels[name]]";
    let left = json!({
        "_class": "hudson.slaves.SlaveComputer", "displayName": "a", "description": "", "idle": false, "offline": true,
        "temporarilyOffline": false, "offlineCauseReason": "Node is being removed", "assignedLabels": [],
    });
    assert_eq!(json(&ask(&mut jenkins, "GET", fields))["computer"][1], left);
    let toggled = ask(&mut jenkins, "POST", "computer/a/toggleOffline");
    assert_eq!((status(&toggled), header(&toggled, "x-jenkins")), (404, None));
    assert_eq!(status(&ask(&mut jenkins, "POST", "computer/a/changeOfflineCause?offlineMessage=x")), 500);

    let basic = format!("Basic {}", BASE64.encode("bot:t0ken"));
    let later = |jenkins: &mut Jenkins, seconds: i64, method: &str, path: &str| {
        let request = Request::builder().method(method).uri(format!("/jenkins/{path}")).header("authorization", &basic);
        jenkins.handle(request.body(Bytes::new()).expect("a request"), Timestamp::from_second(seconds).expect("a time"))
    };
    assert_eq!(status(&later(&mut jenkins, 299, "GET", "computer/a/api/json")), 200);
    assert_eq!(status(&later(&mut jenkins, 300, "GET", "computer/a/api/json")), 404);
    assert_eq!(jenkins.killed_builds(), ["free #1", "app #1"]);

    // Deleting the computer during a block leaves the block waiting for ever.
    create(&mut jenkins, "b", &ssh());
    assert!(jenkins.connect_ssh("b") && jenkins.start_pipeline_on("b", "app #2"));
    for status_of in [302, 302, 404] {
        assert_eq!(status(&ask(&mut jenkins, "POST", "computer/b/doDelete")), status_of);
    }
    assert_eq!(jenkins.hung_builds(), ["app #2"]);

    // Jenkins' own race: an idle computer without a node.
    create(&mut jenkins, "c", &ssh());
    jenkins.lose_node("c", AT);
    assert_eq!(json(&ask(&mut jenkins, "GET", "computer/c/api/json"))["idle"], true);
    assert_eq!(status(&ask(&mut jenkins, "POST", "computer/c/doDelete")), 302);
    assert_eq!(status(&ask(&mut jenkins, "GET", "computer/c/api/json")), 404);
}

#[test]
fn two_creations_by_form_can_race() {
    let mut jenkins = jenkins();
    assert_eq!(status(&create(&mut jenkins, "a", &inbound())), 302);
    jenkins.race_next_creation();
    assert_eq!(status(&create(&mut jenkins, "a", &ssh())), 302);
    assert!(matches!(jenkins.node("a").expect("the node").launcher, Launcher::Ssh(_)), "the later one's");
    assert_eq!(status(&create(&mut jenkins, "a", &inbound())), 400);
    jenkins.delay("computer/doCreateItem", Duration::from_secs(6));
    let slow = create(&mut jenkins, "b", &inbound());
    assert!(slow.extensions().get::<Delay>().is_some() && jenkins.node("b").is_some(), "it has taken effect");
    assert!(create(&mut jenkins, "c", &inbound()).extensions().get::<Delay>().is_none());
}

#[test]
fn plugins_can_be_missing() {
    let mut jenkins = jenkins();
    let classes =
        ["hudson.plugins.sshslaves.SSHLauncher", "org.jenkinsci.plugins.webhookstep.RegisterWebhookStep", "a.Class"];
    let help = |jenkins: &mut Jenkins| {
        classes.map(|class| status(&ask(jenkins, "GET", &format!("descriptorByName/{class}/help"))))
    };
    assert_eq!(help(&mut jenkins), [200, 200, 404]);
    jenkins.remove_plugin("ssh-slaves");
    jenkins.remove_plugin("webhook-step");
    assert_eq!(help(&mut jenkins), [404; 3]);
    assert_eq!(status(&create(&mut jenkins, "a", &ssh())), 500);
    let refused = send(&mut jenkins, "POST", "webhook-step/x", &[("authorization", "raw")], "");
    assert_eq!(status(&refused), 403, "nobody takes it past the crumb filter");
}

#[test]
fn a_deleted_node_takes_its_builds_with_it() {
    let mut jenkins = jenkins();
    create(&mut jenkins, "a", &inbound());
    assert_eq!(jenkins.connect_inbound("b", "x"), Err(ConnectionRefused::NoSuchAgent));
    assert_eq!(jenkins.connect_inbound("a", "x"), Err(ConnectionRefused::WrongSecret));
    let secret = jenkins.secret("a");
    assert!(!jenkins.start_build_on("a", "app #1"), "nobody is there yet");
    assert_eq!(jenkins.connect_inbound("a", &secret), Ok(()));
    assert_eq!(jenkins.connect_inbound("a", &secret), Err(ConnectionRefused::AlreadyConnected));
    assert!(jenkins.start_build_on("a", "app #1"));
    assert!(!jenkins.start_build_on("a", "app #2"), "it has one executor");
    assert_eq!(jenkins.finish_build("a").as_deref(), Some("app #1"));
    assert!(jenkins.start_build_on("a", "app #2"));

    let deleted = ask(&mut jenkins, "POST", "computer/a/doDelete");
    assert_eq!((status(&deleted), header(&deleted, "location")), (302, Some("/jenkins/computer/")));
    assert_eq!(jenkins.killed_builds(), ["app #2"]);
    assert_eq!(status(&ask(&mut jenkins, "POST", "computer/a/doDelete")), 404);
    assert_eq!(status(&ask(&mut jenkins, "POST", "computer/(built-in)/doDelete")), 400);
    assert_eq!(jenkins.secret("a"), secret, "the secret is the name's");

    create(&mut jenkins, "s", &ssh());
    let secret = jenkins.secret("s");
    assert_eq!(jenkins.connect_inbound("s", &secret), Err(ConnectionRefused::NotInbound));
    assert!(jenkins.connect_ssh("s") && !jenkins.connect_ssh("a"));
}

#[test]
fn the_first_argument_is_the_secret() {
    let mut jenkins = jenkins();
    create(&mut jenkins, "a", &inbound());
    let file = ask(&mut jenkins, "GET", "computer/a/jenkins-agent.jnlp");
    let arguments: Vec<_> =
        body(&file).split("<argument>").skip(1).filter_map(|rest| rest.split("</argument>").next()).collect();
    let secret = jenkins.secret("a");
    assert_eq!(secret.len(), 64);
    let rest = ["a", "-webSocket", "-workDir", "/home/jenkins", "-internalDir", "remoting", "-url", ROOT];
    assert_eq!(arguments, [&[secret.as_str()][..], &rest].concat());
    create(&mut jenkins, "s", &ssh());
    let file = ask(&mut jenkins, "GET", "computer/s/jenkins-agent.jnlp");
    let work_dir =
        "<argument>-workDir</argument><argument></argument><argument>-internalDir</argument><argument></argument>";
    assert!(body(&file).contains(work_dir), "an SSH launcher has none");
    let refused = ask_as(&mut jenkins, "reader", "GET", "computer/a/jenkins-agent.jnlp", "");
    assert_eq!(header(&refused, "x-required-permission"), Some("hudson.model.Computer.Connect"));
}

#[test]
fn a_missing_permission_is_named() {
    let mut jenkins = jenkins();
    create(&mut jenkins, "a", &inbound());
    for (method, path, permission) in [
        ("POST", "computer/doCreateItem?name=b", "hudson.model.Computer.Create"),
        ("POST", "computer/createItem?name=b", "hudson.model.Computer.Create"),
        ("GET", "computer/checkName?value=", "hudson.model.Computer.Create"),
        ("POST", "computer/a/toggleOffline", "hudson.model.Computer.Disconnect"),
        ("POST", "computer/a/changeOfflineCause", "hudson.model.Computer.Disconnect"),
        ("POST", "computer/a/doDelete", "hudson.model.Computer.Delete"),
        ("GET", "computer/a/jenkins-agent.jnlp", "hudson.model.Computer.Connect"),
    ] {
        let refused = ask_as(&mut jenkins, "reader", method, path, "");
        assert_eq!((status(&refused), header(&refused, "x-required-permission")), (403, Some(permission)), "{path}");
        assert_eq!(header(&refused, "x-jenkins"), Some("2.579"));
        assert_eq!(header(&refused, "x-you-are-authenticated-as"), Some("reader"));
    }
    let refused = ask_as(&mut jenkins, "reader", "POST", "computer/a/doDelete", "");
    assert!(body(&refused).contains("reader is missing the Agent/Delete permission"));
    let implied: Vec<_> = refused.headers().get_all("x-permission-implied-by").iter().collect();
    assert_eq!(implied.len(), 3);
    let refused = ask_as(&mut jenkins, "nobody", "GET", "computer/api/json", "");
    assert_eq!(header(&refused, "x-required-permission"), Some("hudson.model.Hudson.Read"));
    // Agent/Disconnect implies Agent/Connect, and Overall/Administer everything.
    jenkins.add_user("admin", "t0ken", [Permission::Administer]);
    jenkins.add_user("half", "t0ken", [Permission::Read, Permission::Disconnect]);
    for user in ["admin", "half"] {
        let path = "computer/a/jenkins-agent.jnlp";
        assert_eq!(status(&ask_as(&mut jenkins, user, "GET", path, "")), 200, "{user}");
    }
}

#[test]
fn wrong_credentials_are_refused_everywhere_and_none_are_anonymous() {
    let mut jenkins = jenkins();
    let wrong = format!("Basic {}", BASE64.encode("bot:wrong"));
    for path in ["api/json", "whoAmI/api/json", "webhook-step/x"] {
        for authorization in [wrong.as_str(), "basic !", "Basic Ym90"] {
            let refused = send(&mut jenkins, "GET", path, &[("authorization", authorization)], "");
            assert_eq!(
                (status(&refused), header(&refused, "www-authenticate")),
                (401, Some("Basic realm=\"Jenkins\""))
            );
            assert_eq!(header(&refused, "x-jenkins"), None, "the page is Jetty's");
        }
    }
    let refused = send(&mut jenkins, "GET", "computer/api/json", &[("authorization", "Bearer x")], "");
    assert_eq!((status(&refused), header(&refused, "x-jenkins")), (403, Some("2.579")));
    for name in ["x-you-are-authenticated-as", "x-required-permission", "x-permission-implied-by"] {
        assert_eq!(header(&refused, name), None, "an anonymous caller gets no hint");
    }
    let anonymous = json(&send(&mut jenkins, "GET", "whoAmI/api/json", &[], ""));
    assert_eq!((&anonymous["name"], &anonymous["anonymous"]), (&json!("anonymous"), &json!(true)));
    let known = json(&ask(&mut jenkins, "GET", "whoAmI/api/json?tree=name,anonymous"));
    assert_eq!(known, json!({"_class": "hudson.security.WhoAmI", "name": "bot", "anonymous": false}));
    assert_eq!(json(&ask(&mut jenkins, "GET", "me/api/json"))["id"], "bot");
    assert_eq!(status(&send(&mut jenkins, "GET", "me/api/json", &[], "")), 403);
    assert_eq!(json(&ask(&mut jenkins, "GET", "api/json"))["url"], ROOT);
}

#[test]
fn a_password_needs_a_crumb_of_its_session() {
    let mut jenkins = jenkins();
    let user = User { password: Some("pw".into()), permissions: Permission::FOR_AGENTS.into(), ..User::default() };
    jenkins.set_user("human", user);
    let basic = format!("Basic {}", BASE64.encode("human:pw"));
    let path = "computer/doCreateItem?name=a&type=hudson.slaves.DumbSlave";
    let form = ("content-type", "application/x-www-form-urlencoded");
    let authorization = ("authorization", basic.as_str());
    let refused = send(&mut jenkins, "POST", path, &[authorization, form], "json={}");
    assert_eq!((status(&refused), header(&refused, "x-jenkins")), (403, None));
    assert!(body(&refused).contains("No valid crumb was included in the request"));

    let issued = send(&mut jenkins, "GET", "crumbIssuer/api/json", &[authorization], "");
    let session = header(&issued, "set-cookie").expect("a session").split(';').next().expect("a cookie").to_owned();
    let issued = json(&issued);
    assert_eq!(issued["crumbRequestField"], "Jenkins-Crumb");
    let crumb = issued["crumb"].as_str().expect("a crumb");
    let without = send(&mut jenkins, "POST", path, &[authorization, form, ("jenkins-crumb", crumb)], "json={}");
    assert_eq!(status(&without), 403, "without its session");
    let headers = [authorization, form, ("jenkins-crumb", crumb), ("cookie", &session)];
    assert_eq!(status(&send(&mut jenkins, "POST", path, &headers, "json={}")), 302);
    assert_eq!(status(&send(&mut jenkins, "POST", "nowhere", &[], "")), 403, "the crumb is asked for first");
}

#[test]
fn a_get_where_a_post_is_required_is_405_or_404() {
    let mut jenkins = jenkins();
    create(&mut jenkins, "a", &inbound());
    for path in
        ["computer/createItem", "computer/a/toggleOffline", "computer/a/changeOfflineCause", "computer/a/doDelete"]
    {
        let refused = ask(&mut jenkins, "GET", path);
        assert_eq!((status(&refused), header(&refused, "allow")), (405, None), "{path}");
    }
    for path in ["computer/doCreateItem?name=b", "webhook-step/x", "nowhere"] {
        let refused = ask(&mut jenkins, "GET", path);
        assert_eq!((status(&refused), header(&refused, "x-jenkins")), (404, Some("2.579")), "{path}");
        assert!(body(&refused).contains("<title> - Jenkins</title>"), "{path}");
    }
    let semicolon = ask(&mut jenkins, "GET", "computer/a;b/api/json");
    assert_eq!((status(&semicolon), header(&semicolon, "x-jenkins")), (400, None));
    let outside = jenkins.handle(Request::get("/jenkinsx/").body(Bytes::new()).expect("a request"), AT);
    assert_eq!((status(&outside), header(&outside, "x-jenkins")), (404, None));
}

#[test]
fn the_pages_show_allowed_actions() {
    let mut jenkins = jenkins();
    create(&mut jenkins, "a", &inbound());
    let mut page = |user: &str, path: &str| {
        let page = ask_as(&mut jenkins, user, "GET", path, "");
        assert_eq!(status(&page), 200, "{path}");
        body(&page).to_owned()
    };
    assert!(page("bot", "computer/a/").contains("doDelete"));
    assert!(!page("reader", "computer/a/").contains("doDelete"));
    assert!(page("bot", "computer/(built-in)/setOfflineCause").contains("changeOfflineCause"));
    assert!(!page("reader", "computer/(built-in)/setOfflineCause").contains("changeOfflineCause"));
    assert_eq!(page("bot", "computer/checkName?value="), "<div/>");
    assert_eq!(page("bot", "computer/checkName?value=b"), "<div/>");
    assert!(page("bot", "computer/checkName?value=a").starts_with("<div class=error>"));
    let data = |jenkins: &mut Jenkins, user: &str| {
        let path = "computer/api/json?tree=computer[monitorData[*]]%7B0,2%7D";
        json(&ask_as(jenkins, user, "GET", path, ""))["computer"][1]["monitorData"].as_object().map(Map::len)
    };
    assert_eq!((data(&mut jenkins, "bot"), data(&mut jenkins, "reader")), (Some(7), Some(0)));
    let redirect = ask(&mut jenkins, "GET", "computer/a");
    assert_eq!((status(&redirect), header(&redirect, "location")), (302, Some("/jenkins/computer/a/")));
}

fn path(url: &str) -> &str {
    url.strip_prefix(ROOT).expect("on this controller")
}

#[test]
fn a_webhook_accepts_one_post() {
    let mut jenkins = jenkins();
    let url = jenkins.register_webhook(None);
    assert!(jenkins.wait_for_webhook(&url).is_none());
    let taken = send(&mut jenkins, "POST", path(&url), &[("authorization", "whatever")], "1");
    assert_eq!((status(&taken), header(&taken, "result")), (200, Some("WebhookTriggered")));
    assert_eq!(status(&send(&mut jenkins, "POST", path(&url), &[], "2")), 202);
    for posted in ["1", "2"] {
        assert_eq!(jenkins.wait_for_webhook(&url).map(|arrival| arrival.body), Some(Bytes::from(posted)));
    }
    assert!(jenkins.wait_for_webhook(&url).is_none());

    // Posted before anybody waits: it is kept.
    let early = jenkins.register_webhook(None);
    assert_ne!(early, url);
    assert_eq!(status(&send(&mut jenkins, "POST", path(&early), &[], "early")), 202);
    assert_eq!(status(&send(&mut jenkins, "POST", path(&early), &[], "later")), 202);
    assert_eq!(jenkins.wait_for_webhook(&early).map(|arrival| arrival.body), Some(Bytes::from("later")));
    assert!(jenkins.wait_for_webhook(&early).is_none(), "the second took the place of the first");
    assert_eq!(status(&ask(&mut jenkins, "POST", "webhook-step/")), 500, "no token");
    // The token is unknown, or no longer known: still 202.
    assert_eq!(status(&send(&mut jenkins, "POST", "webhook-step/unknown", &[], "")), 202);
    jenkins.abandon_webhook(&url);
    assert_eq!(status(&send(&mut jenkins, "POST", path(&url), &[], "3")), 202);
    assert_eq!(jenkins.arrivals().len(), 6);
    assert_eq!(jenkins.wait_for_webhook("http://elsewhere/webhook-step/x").map(|arrival| arrival.body), None);
}

#[test]
fn a_webhook_requires_its_secret_raw() {
    let mut jenkins = jenkins();
    let url = jenkins.register_webhook(Some("s3cret"));
    assert!(jenkins.wait_for_webhook(&url).is_none());
    for headers in [&[][..], &[("authorization", "Bearer s3cret")], &[("authorization", "S3cret")]] {
        let refused = send(&mut jenkins, "POST", path(&url), headers, "");
        assert_eq!((status(&refused), header(&refused, "result")), (403, Some("Unauthorized")));
    }
    assert_eq!(status(&send(&mut jenkins, "POST", path(&url), &[("authorization", "s3cret")], "1")), 200);
    assert_eq!(jenkins.wait_for_webhook(&url).map(|arrival| arrival.body), Some(Bytes::from("1")));

    // A restart forgets secrets and what nobody waited for; pipelines continue to wait.
    let kept = jenkins.register_webhook(None);
    send(&mut jenkins, "POST", path(&kept), &[], "lost");
    assert!(jenkins.wait_for_webhook(&url).is_none());
    jenkins.restart();
    assert_eq!(status(&send(&mut jenkins, "POST", path(&url), &[], "2")), 200);
    assert!(jenkins.wait_for_webhook(&kept).is_none());

    // A plugin's own endpoint accepts any number.
    let endpoint = jenkins.add_endpoint("agents/notices", Some("raw"));
    assert_eq!(status(&send(&mut jenkins, "POST", path(&endpoint), &[("authorization", "raw")], "1")), 200);
    assert_eq!(status(&send(&mut jenkins, "POST", path(&endpoint), &[("authorization", "raw")], "2")), 200);
    assert_eq!(status(&send(&mut jenkins, "POST", path(&endpoint), &[], "3")), 403);
}

#[test]
fn it_can_be_unavailable() {
    let mut jenkins = jenkins();
    jenkins.set_starting(true);
    let starting = ask(&mut jenkins, "GET", "api/json");
    assert_eq!((status(&starting), header(&starting, "x-jenkins")), (503, None));
    assert!(body(&starting).contains("getting ready to work"));
    jenkins.set_starting(false);
    let unready = ask(&mut jenkins, "GET", "api/json");
    assert_eq!((status(&unready), header(&unready, "x-jenkins")), (500, Some("2.579")));
    let answer = |status: u16| Response::builder().status(status).body(Bytes::new()).expect("a response");
    jenkins.script("webhook-step/*", [answer(429), answer(410)]);
    jenkins.script("api/json", [answer(500)]);
    assert_eq!(status(&ask(&mut jenkins, "POST", "webhook-step/x")), 429);
    assert_eq!(status(&ask(&mut jenkins, "GET", "api/json?tree=mode")), 500);
    assert_eq!(status(&ask(&mut jenkins, "GET", "api/json")), 200);
    assert_eq!(status(&ask(&mut jenkins, "POST", "webhook-step/x")), 410);
    assert_eq!(status(&ask(&mut jenkins, "POST", "webhook-step/x")), 202);
    let last = jenkins.exchanges().last().expect("an exchange");
    assert_eq!((last.target.as_str(), last.user.as_deref()), ("/jenkins/webhook-step/x", Some("bot")));
    // Without a context path.
    let mut plain = Jenkins::new("http://127.0.0.1:8080");
    assert_eq!(plain.url("x"), "http://127.0.0.1:8080/x");
    assert_eq!(status(&plain.handle(Request::get("/login").body(Bytes::new()).expect("a request"), AT)), 200);
}
