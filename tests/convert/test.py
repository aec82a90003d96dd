"""Tests of ./local/convert; see run."""

import contextlib
import io
import os
import re
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "local"))

import convert  # noqa: E402

GUIDE = (ROOT / "docs/coming-from-amazon-ecs-plugin.md").read_text()
CASES = sorted(folder for folder in HERE.iterdir() if (folder / "jenkins.yaml").exists())
# Some value of each setting that is not its default.
SAMPLES = {
    "capacityProviderStrategies": [{"provider": "spot", "base": 1, "weight": 3}],
    "efsMountPoints": [{"name": "e", "containerPath": "/e", "fileSystemId": "fs-1"}],
    "environments": [{"name": "A", "value": "b"}],
    "extraHosts": [{"ipAddress": "10.0.0.1", "hostname": "h"}],
    "mountPoints": [{"name": "m", "containerPath": "/m"}],
    "placementStrategies": [{"type": "spread", "field": "instanceId"}],
    "portMappings": [{"containerPort": 80}],
    "tags": [{"name": "a", "value": "b"}],
    "ulimits": [{"ulimitName": "nofile", "softLimit": 1, "hardLimit": 2}],
    "logDriverOptions": [{"name": "a", "value": "b"}],
    "allowedOverrides": "cpu", "assumedRoleArn": "arn:aws:iam::111122223333:role/r", "launchType": "EXTERNAL",
    "networkMode": "host", "operatingSystemFamily": "LINUX", "jenkinsUrl": "https://other.example.com/",
}
NUMBERS = {"cpu", "memory", "memoryReservation", "ephemeralStorageSizeInGiB", "sharedMemorySize", "maxAgents", "maxCpu",
           "maxMemory", "maxMemoryReservation", "numExecutors", "retentionTimeout", "slaveTimeoutInSeconds",
           "slaveTimoutInSeconds", "taskPollingIntervalInSeconds"}
FLAGS = {"assignPublicIp", "defaultCapacityProvider", "enableExecuteCommand", "privileged", "retainAgents",
         "uniqueRemoteFSRoot"}
TEMPLATE = {"templateName": "t", "label": "l", "image": "i", "memory": 512}
CLOUD = {"name": "c", "cluster": "k", "regionName": "eu-west-1", "allowedOverrides": "cpu, memory"}


def sample(setting):
    if setting in NUMBERS:
        return 77
    return True if setting in FLAGS else SAMPLES.get(setting, f"some-{setting}")


def converted(cloud, template):
    """All that comes out, as text."""
    agents, stacks, report = converter(cloud, template)
    return convert.dump([agents, stacks]) + "\n".join(report)


def reported(cloud, *templates):
    return converter(cloud, *templates)[2]


def converter(cloud, *templates):
    options = convert.parse(["jenkins.yaml", "--jenkins-url", "https://ci.example.com/"])
    agents, stacks, report = convert.convert([{**cloud, "templates": templates}], "", options)
    return agents, stacks, [f"{kind}: {text}" for kind, text in report.read()]


def run(*arguments):
    """The exit code, and what was printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = convert.main([str(argument) for argument in arguments])
    return code, out.getvalue()


class WholeConfigurations(unittest.TestCase):
    def test_come_out_as_the_folders_say(self):
        for case in CASES:
            with self.subTest(case.name), tempfile.TemporaryDirectory() as out, environment(case):
                code, printed = run(case / "jenkins.yaml", "--out", out)
                self.assertEqual(code, 0, printed)
                files = {file.name: file.read_text() for file in Path(out).iterdir()}
                files["report.txt"] = printed.replace(out, "FOLDER")
                expected = {file.name: file.read_text() for file in (case / "expected").glob("*")}
                self.assertEqual(files, expected)


class Settings(unittest.TestCase):
    def test_of_a_template_are_never_dropped_in_silence(self):
        for setting in sorted(convert.TEMPLATE_SETTINGS - {"templateName"}):
            for launch in ("EC2", "FARGATE"):
                with self.subTest(setting, launch=launch):
                    base = {**TEMPLATE, "launchType": launch, "cpu": 256, "subnets": "subnet-1"}
                    base["logDriver"] = "" if setting == "logDriver" else "awslogs"
                    base.pop("subnets" if launch == "EC2" else "", None)
                    base.pop(setting, None)
                    self.assertNotEqual(converted(CLOUD, base), converted(CLOUD, {**base, setting: sample(setting)}))

    def test_of_a_cloud_are_never_dropped_in_silence(self):
        for setting in sorted(convert.CLOUD_SETTINGS - {"templates", "regionName"}):
            with self.subTest(setting):
                base = {key: value for key, value in CLOUD.items() if key != setting}
                base.setdefault("name", "other")
                changed = {**base, setting: sample(setting)}
                if setting == "maxMemoryReservation":
                    base["maxMemory"] = changed["maxMemory"] = 1
                self.assertNotEqual(converted(base, TEMPLATE), converted(changed, TEMPLATE))

    def test_that_nobody_knows_are_named(self):
        template = {**TEMPLATE, "colour": "red"}
        self.assertIn("clouds[c].templates[t].colour: is not a setting", converted(CLOUD, template))
        self.assertIn("clouds[c].colour: is not a setting", converted({**CLOUD, "colour": "red"}, TEMPLATE))
        entry = {**TEMPLATE, "tags": [{"name": "a", "value": "b", "colour": "red"}]}
        self.assertIn("tags[0].colour: is not a setting", converted(CLOUD, entry))
        self.assertIn("converter knows; did you mean memory?", converted(CLOUD, {**TEMPLATE, "memmory": 1024}))

    def test_that_are_inherited_are_reported_once(self):
        parent = {**TEMPLATE, "label": "base", "launchType": "FARGATE", "cpu": 256, "subnets": "subnet-1",
                  "colour": "red", "privileged": True, "environments": [{"name": "JENKINS_URL", "value": "u"}],
                  "ulimits": [{"ulimitName": "nofile", "soft": 1}]}
        child = {"templateName": "child", "label": "child", "inheritFrom": "base"}
        for order in ((parent, child), (child, parent)):
            report = reported(CLOUD, *order)
            for setting in ("colour", "privileged", "environments", "ulimits[0].soft"):
                self.assertEqual(len([line for line in report if f"{setting}: " in line]), 1, (setting, report))

    def test_that_the_launch_type_of_the_child_makes_useless_are_reported_there(self):
        parent = {**TEMPLATE, "label": "base", "privileged": True}
        child = {"templateName": "child", "label": "child", "inheritFrom": "base", "launchType": "FARGATE", "cpu": 256,
                 "subnets": "subnet-1"}
        self.assertIn("NOT TAKEN OVER: clouds[c].templates[child].privileged: ECS does not support it on Fargate",
                      reported(CLOUD, parent, child))

    def test_of_a_grandparent_are_not_inherited(self):
        report = reported(CLOUD, {**TEMPLATE, "label": "a"}, {**TEMPLATE, "label": "b", "inheritFrom": "a"},
                          {**TEMPLATE, "templateName": "c", "label": "c", "inheritFrom": "b"})
        found = ["without what b inherits" in line for line in report if "inheritFrom: " in line]
        self.assertEqual(found, [False, True])

    def test_that_fargate_refuses_are_left_out(self):
        for launch, added in (("EC2", ["SYS_PTRACE", "SYS_ADMIN"]), ("FARGATE", ["SYS_PTRACE"])):
            template = {**TEMPLATE, "launchType": launch, "cpu": 256, "kernelCapabilities": "SYS_PTRACE, SYS_ADMIN"}
            _, stacks, report = converter(CLOUD, {**template, "subnets": "subnet-1"})
            resource, = stacks["task-definitions-c.yaml"]["Resources"].values()
            linux = resource["Properties"]["ContainerDefinitions"][0]["LinuxParameters"]
            self.assertEqual(linux["Capabilities"]["Add"], added)
            self.assertEqual(any("kernelCapabilities: SYS_ADMIN" in line for line in report), launch == "FARGATE")

    def test_that_reserve_memory_change_with_the_override(self):
        for allowed in ("memory", "cpu"):
            report = reported({**CLOUD, "allowedOverrides": allowed}, {**TEMPLATE, "memoryReservation": 256})
            self.assertEqual(any("reserves its whole memory, 512 MiB" in line for line in report), allowed == "memory")

    def test_that_have_to_be_filled_in_are_no_valid_values(self):
        agents, _, _ = converter(CLOUD, {**TEMPLATE, "launchType": "FARGATE", "cpu": 256})
        self.assertEqual(agents["clouds"][0]["templates"][0]["network"]["subnets"], ["FILL IN"])

    def test_have_each_a_full_row_in_the_guide(self):
        for section, settings in [("Cloud", convert.CLOUD_SETTINGS), ("Template", convert.TEMPLATE_SETTINGS),
                                  ("Pipeline step and declarative agent", {"label", "name", "cloud", "overrides"})]:
            text = re.search(rf"^### {section}\n(.*?)(?=^##)", GUIDE, re.MULTILINE | re.DOTALL)[1]
            rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in text.splitlines() if row.startswith("|")]
            for row in rows:
                self.assertTrue(len(row) == 3 and all(cell.strip() for cell in row), row)
            named = {setting for row in rows for setting in re.findall(r"`(\w+)`", row[0])}
            self.assertEqual(sorted(settings - named), [], f"settings without a row under {section}")


class Guide(unittest.TestCase):
    def test_quotes_what_the_converter_reads_and_writes(self):
        quotes = re.findall(r"\]\(\.\./(tests/convert/\S+)\):\n\n```yaml\n(.*?)```", GUIDE, re.DOTALL)
        self.assertGreaterEqual(len(quotes), 6)
        for file, quote in quotes:
            with self.subTest(file):
                self.assertIn(quote, (ROOT / file).read_text())


class WhatElseIsNeeded(unittest.TestCase):
    def test_for_the_stack_are_the_arns_of_clusters(self):
        for cluster, text in (("k", ":cluster/k"), ("arn:aws:ecs:eu-west-1:111122223333:cluster/k", "Value: arn:")):
            _, stacks, _ = converter({**CLOUD, "cluster": cluster}, TEMPLATE)
            outputs = stacks["task-definitions-c.yaml"]["Outputs"]
            self.assertIn(text, convert.dump(outputs["ClusterArns"]))

    def test_for_several_regions_is_forwarding(self):
        for region, needed in (("eu-west-1", False), ("us-east-1", True)):
            clouds = [{**CLOUD, "templates": [TEMPLATE]},
                      {**CLOUD, "name": "d", "regionName": region, "templates": [TEMPLATE]}]
            _, _, report = convert.convert(clouds, "https://ci.example.com/", convert.parse(["x"]))
            self.assertEqual(any("forwarding.yaml" in text for _, text in report.read()), needed)

    def test_for_the_label_listener_are_the_templates(self):
        for timeout, more in ((900, []), (1201, ["askAgainMinutes = 41"])):
            cloud = {**CLOUD, "slaveTimeoutInSeconds": timeout}
            agents, _, _ = converter(cloud, TEMPLATE, {**TEMPLATE, "label": "a b"})
            self.assertEqual(list(convert.listener_properties(agents["clouds"])), ["templates = l; a b", *more])

    def test_for_pipelines_is_the_name_of_the_default_template(self):
        self.assertTrue(any("label: pipelines without inheritFrom" in line
                            for line in reported(CLOUD, {**TEMPLATE, "label": "template-default x"})))


class Names(unittest.TestCase):
    def test_of_templates_are_unique_in_a_cluster(self):
        clouds = [{**CLOUD, "name": name, "cluster": cluster, "templates": [TEMPLATE]} for name, cluster in
                  (("a", "one"), ("b", "arn:aws:ecs:eu-west-1:111122223333:cluster/one"), ("c", "two"))]
        agents, _, _ = convert.convert(clouds, "https://ci.example.com/", convert.parse(["x"]))
        names = [cloud["templates"][0]["name"] for cloud in agents["clouds"]]
        self.assertEqual(names, ["t", "t-2", "t"])

    def test_of_task_definitions_are_what_the_loader_takes(self):
        arn = "arn:aws:ecs:eu-west-1:111122223333:task-definition/f"
        for given, taken in ((arn, "f"), (arn + ":7", arn + ":7"), ("f", "f"), ("f:7", "f:7")):
            with self.subTest(given):
                template = {"label": "l", "taskDefinitionOverride": given}
                self.assertIn(f"taskDefinition: {taken}\n", converted(CLOUD, template))


class Variables(unittest.TestCase):
    def test_come_from_the_environment_or_their_default(self):
        variables = convert.Variables({"A": "x", "B": ""})
        values = {"v": ["${A}-${B}", "${C:-d}", "${C:-}", "^${A}", 7]}
        self.assertEqual(variables.resolve(values), {"v": ["x-", "d", "", "${A}", 7]})
        self.assertEqual(variables.missing, set())

    def test_that_are_missing_are_all_named(self):
        with written("jenkins: {clouds: [{ecs: {name: '${NO_A}', cluster: '${NO_B}'}}]}") as file:
            code, printed = run(file)
        self.assertEqual(code, 1)
        self.assertIn("NO_A, NO_B", printed)

    def test_that_only_jenkins_can_look_up_are_not_asked_for(self):
        with written("jenkins: {clouds: [{ecs: {name: '${readFile:/n}', cluster: '${base64:${C}}'}}]}") as file:
            code, printed = run(file)
        self.assertEqual(code, 1)
        self.assertIn("${base64:…}, ${readFile:…}: is evaluated only by Jenkins", printed)

    def test_of_the_builds_are_named_where_their_values_are_written(self):
        variables = convert.Variables({"TOKEN": "hidden"})
        given = {"A": "${TOKEN}", "B": "^${TOKEN}", "C": "c"}
        entries = [{"name": name, "value": value} for name, value in given.items()]
        printed = converted(CLOUD, {**TEMPLATE, "environments": variables.resolve(entries)})
        self.assertIn("A: hidden", printed)
        self.assertIn("environments: A: the variable's value is written in clear", printed)


class Url(unittest.TestCase):
    def test_of_the_controller_is_asked_for_where_only_agents_have_one(self):
        cloud = "{ecs: {name: c, regionName: eu-west-1, jenkinsUrl: 'http://internal:8080/', templates: [{label: l}]}}"
        for location, asked in (("", True), ("unclassified: {location: {url: 'https://ci.example.com/'}}", False)):
            with self.subTest(location), written(f"jenkins: {{clouds: [{cloud}]}}\n{location}\n") as file:
                _, printed = run(file, "--out", file.parent)
                self.assertEqual("FILL IN         unclassified.location.url: " in printed, asked, printed)
                agents = (file.parent / "agents.yaml").read_text()
                self.assertIn("url: http://internal:8080/" if asked else "agentUrl: http://internal:8080/", agents)


class GivenTaskDefinitions(unittest.TestCase):
    def test_and_their_roles_are_named_for_the_stack(self):
        report = "\n".join(reported(CLOUD, {"label": "l", "taskDefinitionOverride": "builds:7", "executionRole": "r"}))
        self.assertIn("taskDefinitionOverride: add its ARN", report)
        self.assertIn("not needed: clouds[c].templates[l].executionRole", report)


class Faults(unittest.TestCase):
    def test_end_with_a_sentence(self):
        cloud = "jenkins: {clouds: [{ecs: {name: c, %s}}]}"
        complete = "jenkinsUrl: 'https://a/', regionName: eu-west-1"
        for text, sentence in [
            ("{", "expected"),
            ("[1]", "is not configuration as code"),
            ("jenkins: {}", "no ecs cloud under jenkins.clouds"),
            (cloud % "templates: []", "--jenkins-url"),
            (cloud % "jenkinsUrl: 'https://a/', templates: [{label: l}]", "--region"),
            (cloud % complete, "no cloud has a template"),
            (cloud % f"{complete}, templates: [{{cpu: many}}]", "'many' is not a number"),
        ]:
            with self.subTest(text), written(text) as file:
                code, printed = run(file, "--out", file.parent)
                self.assertEqual(code, 1)
                self.assertIn(sentence, printed)

    def test_nothing_is_overwritten_unasked(self):
        text = "jenkins: {clouds: [{ecs: {name: c, regionName: eu-west-1, templates: [{label: l, image: i}]}}]}"
        with written(text) as file:
            arguments = (file, "--out", file.parent, "--jenkins-url", "https://a/")
            self.assertEqual(run(*arguments)[0], 0)
            self.assertIn("exists already", run(*arguments)[1])
            self.assertEqual(run(*arguments, "--force")[0], 0)


@contextlib.contextmanager
def written(text):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "jenkins.yaml"
        file.write_text(text)
        yield file


@contextlib.contextmanager
def environment(case):
    before = dict(os.environ)
    file = case / "environment"
    if file.exists():
        os.environ.update(line.split("=", 1) for line in file.read_text().splitlines())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def accept():
    for case in CASES:
        out = case / "expected"
        out.mkdir(exist_ok=True)
        for file in out.iterdir():
            file.unlink()
        with environment(case):
            _, printed = run(case / "jenkins.yaml", "--out", out)
        (out / "report.txt").write_text(printed.replace(str(out), "FOLDER"))


if __name__ == "__main__":
    if sys.argv[1:] == ["--accept"]:
        sys.exit(accept())
    result = unittest.main(argv=sys.argv[:1], exit=False, verbosity=0).result
    failed = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - min(failed, result.testsRun)} passed, {failed} failed")
    sys.exit(bool(failed))
