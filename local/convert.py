"""Converts the `ecs` clouds of Jenkins configuration as code to agents.yaml and CloudFormation templates.

It knows the settings of jenkinsci/amazon-ecs-plugin, and their names in its older versions and in the fork
scalable-amazon-ecs. docs/coming-from-amazon-ecs-plugin.md has a row for each of them.
"""

import argparse
import difflib
import os
import re
import sys
from pathlib import Path

import yaml

CLOUD_SETTINGS = frozenset({
    "allowedOverrides", "assumedRoleArn", "cluster", "credentialsId", "jenkinsUrl", "maxAgents", "maxCpu", "maxMemory",
    "maxMemoryReservation", "name", "numExecutors", "regionName", "retainAgents", "retentionTimeout",
    "slaveTimeoutInSeconds", "slaveTimoutInSeconds", "taskPollingIntervalInSeconds", "templates", "tunnel",
})
TEMPLATE_SETTINGS = frozenset({
    "agentContainerName", "assignPublicIp", "capacityProviderStrategies", "containerUser", "cpu", "cpuArchitecture",
    "defaultCapacityProvider", "dnsSearchDomains", "dynamicTaskDefinition", "dynamicTaskDefinitionOverride",
    "efsMountPoints", "enableExecuteCommand", "entrypoint", "environments", "ephemeralStorageSizeInGiB",
    "executionRole", "extraHosts", "image", "inheritFrom", "jvmArgs", "kernelCapabilities", "label", "launchType",
    "logDriver", "logDriverOptions", "memory", "memoryReservation", "mountPoints", "networkMode",
    "operatingSystemFamily", "placementStrategies", "platformVersion", "portMappings", "privileged", "remoteFSRoot",
    "repositoryCredentials", "securityGroups", "sharedMemorySize", "subnets", "tags", "taskDefinitionOverride",
    "taskrole", "templateName", "ulimits", "uniqueRemoteFSRoot",
})
ENTRY_SETTINGS = {
    "capacityProviderStrategies": ("provider", "base", "weight"),
    "efsMountPoints": ("name", "containerPath", "fileSystemId", "rootDirectory", "accessPointId", "transitEncryption",
                       "iam", "readOnly"),
    "environments": ("name", "value"),
    "extraHosts": ("ipAddress", "hostname"),
    "logDriverOptions": ("name", "value"),
    "mountPoints": ("name", "sourcePath", "containerPath", "readOnly"),
    "placementStrategies": ("type", "field"),
    "portMappings": ("containerPort", "hostPort", "protocol"),
    "tags": ("name", "value"),
    "ulimits": ("ulimitName", "softLimit", "hardLimit"),
}
# What a template never inherits (ECSTaskTemplate.merge).
NOT_INHERITED = {"inheritFrom", "jvmArgs", "dnsSearchDomains", "dynamicTaskDefinition", "dynamicTaskDefinitionOverride"}
# What a pipeline may override: the plugin's words, in lower case as it compares them, and their counterparts here.
OVERRIDES = {
    "cpu": "cpu", "memory": "memory", "memoryreservation": "memory", "environments": "environment",
    "taskrole": "taskRole", "ephemeralstoragesizeingib": "ephemeralStorage",
    "taskdefinitionoverride": "taskDefinition", "image": "taskDefinition",
}
NO_OVERRIDES = {"label", "inheritfrom", "cloud", "name", ""}
# Set by the launch itself; the loader refuses them in `environment`.
RESERVED_VARIABLES = {
    "JENKINS_URL", "JENKINS_AGENT_NAME", "JENKINS_SECRET", "JENKINS_AGENT_WORKDIR", "JENKINS_WEB_SOCKET",
    "JENKINS_NAME", "JENKINS_TUNNEL", "JENKINS_DIRECT_CONNECTION", "JENKINS_INSTANCE_IDENTITY", "JENKINS_PROTOCOLS",
    "JENKINS_ECS_AGENTS_REQUEST",
}
# The default of slaveTimeoutInSeconds and of containerStartTimeout.
DEFAULT_START_SECONDS = 900
NOT_ON_FARGATE = "ECS does not support it on Fargate"
ONLY_ON_FARGATE = "has no effect except on Fargate, as in the plugin"


class Fault(Exception):
    """Why the conversion cannot go on."""


class Report:
    """What became of each setting. A setting without a line has the same effect as before."""

    def __init__(self):
        self.entries = []

    def add(self, kind, place, what, inherited_from=None):
        """`inherited_from` is the place of the setting in the template that has it."""
        self.entries.append((kind, place, what, inherited_from))

    def read(self):
        """Kinds and texts. What is reported for a setting is not repeated for the templates that inherit it."""
        found = {(kind, place, what) for kind, place, what, _ in self.entries}
        kept = [(kind, f"{place}: {what}") for kind, place, what, source in self.entries
                if (kind, source, what) not in found]
        return list(dict.fromkeys(kept))


class Settings:
    """The settings of one cloud, template or entry. What the plugin treats as unset counts as absent."""

    def __init__(self, values, path, known, report, inherited=None):
        """`inherited` maps settings that another template has to that template's path."""
        if not isinstance(values, dict):
            raise Fault(f"{path}: must be a mapping")
        self.values, self.path, self.report, self.inherited = values, path, report, inherited or {}
        for key in values:
            if key not in known:
                self.lose(key, "is not a setting that this converter knows" + similar(key, known))

    def has(self, key):
        return self.text(key) not in ("", "0", "false", "[]")

    def text(self, key):
        value = self.values.get(key)
        if isinstance(value, bool):
            return str(value).lower()
        return "" if value is None else str(value).strip()

    def number(self, key):
        text = self.text(key)
        if not re.fullmatch(r"-?\d*", text):
            raise Fault(f"{self.path}.{key}: {text!r} is not a number")
        return int(text or 0)

    def flag(self, key):
        return self.text(key).lower() == "true"

    def words(self, key, separator):
        return [word.strip() for word in re.split(separator, self.text(key)) if word.strip()]

    def entries(self, key):
        values = self.values.get(key) or []
        if not isinstance(values, list):
            raise Fault(f"{self.path}.{key}: must be a list")
        known = ENTRY_SETTINGS[key]
        made = []
        for index, value in enumerate(values):
            entry = f"{key}[{index}]"
            source = f"{self.inherited[key]}.{entry}" if key in self.inherited else None
            inherited = dict.fromkeys(value, source) if source and isinstance(value, dict) else {}
            made.append(Settings(value, f"{self.path}.{entry}", known, self.report, inherited))
        return made

    def pairs(self, key):
        """Entries of a name and a value; the plugin ignores those that lack either."""
        found = {entry.text("name"): entry.text("value") for entry in self.entries(key)}
        return {name: value for name, value in found.items() if name and value}

    def _report(self, kind, key, what):
        source = f"{self.inherited[key]}.{key}" if key in self.inherited else None
        self.report.add(kind, f"{self.path}.{key}", what, source)

    def lose(self, key, why):
        self._report("NOT TAKEN OVER", key, why)

    def lose_if_set(self, why, *keys):
        for key in keys:
            if self.has(key):
                self.lose(key, why)

    def drop_if_set(self, why, *keys):
        for key in keys:
            if self.has(key):
                self._report("not needed", key, why)

    def change(self, key, how):
        self._report("changed", key, how)

    def fill_in(self, key, what):
        self._report("FILL IN", key, what)

    def consider(self, key, what):
        self._report("new here", key, what)


def similar(key, known):
    """The setting that was probably meant."""
    by_lower_case = {name.lower(): name for name in known}
    found = difflib.get_close_matches(key.lower(), by_lower_case, 1, 0.75)
    return f"; did you mean {by_lower_case[found[0]]}?" if found else ""


class Resolved(str):
    """A text with the value of a variable in it."""


class Variables:
    """`${NAME}` and `${NAME:-default}`, as configuration as code reads them; `^${…}` stands for itself."""

    def __init__(self, environment):
        self.environment = environment
        self.missing = set()
        self.lookups = set()

    def resolve(self, value):
        if isinstance(value, dict):
            return {key: self.resolve(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.resolve(inner) for inner in value]
        if not isinstance(value, str):
            return value
        text = re.sub(r"(\^?)\$\{([^}]*)\}", self._replace, value)
        return Resolved(text) if re.search(r"(?<!\^)\$\{", value) else text

    def _replace(self, match):
        escaped, name = match.groups()
        if escaped:
            return match[0][1:]
        name, given, default = name.partition(":-")
        if name in self.environment:
            return self.environment[name]
        if ":" in name:
            self.lookups.add(name.partition(":")[0])
        elif not given:
            self.missing.add(name)
        return default


class Names:
    """Unique names of 1 to 64 of `A-Z a-z 0-9 _ -`."""

    def __init__(self):
        self.taken = set()
        self.scopes = {}

    def within(self, *scope):
        """Names that have to be unique in one scope only."""
        return self.scopes.setdefault(scope, Names())

    def make(self, text):
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or "agent"
        unique, number = name, 1
        while unique in self.taken:
            number += 1
            unique = f"{name}-{number}"
        self.taken.add(unique)
        return unique


def template_title(template, index):
    return (isinstance(template, dict) and (template.get("templateName") or template.get("label"))) or index


def inherit(child, templates):
    """A template merged with the one whose label it names in `inheritFrom`, as ECSTaskTemplate.merge does: what the
    parent itself inherits is left out. Returns the parent and what came from it, too."""
    wanted = str(child.get("inheritFrom") or "").split()
    parent = next((one for one in templates if set(str(one.get("label") or "").split()) & set(wanted)), None)
    if not wanted or parent is None or parent is child:
        return dict(child), parent, set()
    unset = (None, "", 0, False, "0", "false", [])
    inherited = {key: value for key, value in parent.items()
                 if key in TEMPLATE_SETTINGS - NOT_INHERITED and value not in unset}
    merged = inherited | {key: value for key, value in child.items() if value not in unset}
    if parent.get("tags") and child.get("tags"):
        merged["tags"] = [*parent["tags"], *child["tags"]]
    return merged, parent, {key for key in inherited if child.get(key) in unset}


class Cloud:
    """One `ecs` cloud, converted."""

    def __init__(self, settings, names, options):
        self.settings, self.report = settings, settings.report
        self.name = names.make(settings.text("name"))
        if self.name != settings.text("name"):
            settings.change("name", f"becomes {self.name}: 1 to 64 of A-Z a-z 0-9 _ -")
        self.region = settings.text("regionName") or arn_region(settings.text("cluster")) or options.region
        if not self.region:
            raise Fault(f"{settings.path}.regionName: is not set; name the region with --region")
        # Two clouds may share a cluster; the names of their templates distinguish the agents.
        cluster = settings.text("cluster").rsplit("/", 1)[-1]
        self.template_names = names.within(self.region, cluster, settings.text("assumedRoleArn"))
        self.roles = []
        self.resources = {}

    def convert(self, jenkins_url):
        settings = self.settings
        cloud = {"name": self.name, "region": self.region, "cluster": settings.text("cluster") or "default"}
        if settings.has("assumedRoleArn"):
            cloud["assumeRoleArn"] = settings.text("assumedRoleArn")
            settings.change("assumedRoleArn", "becomes assumeRoleArn; it must be the role that forwarding.yaml creates")
        if settings.has("maxAgents"):
            cloud["maxAgents"] = settings.number("maxAgents")
            settings.change("maxAgents", "limits all agents of the cloud; the plugin limits those of one label")
        if settings.has("jenkinsUrl") and settings.text("jenkinsUrl").rstrip("/") != jenkins_url.rstrip("/"):
            cloud["agentUrl"] = settings.text("jenkinsUrl")
            settings.change("jenkinsUrl", "becomes agentUrl, which only the agents use")
        self._lose_what_is_missing()
        cloud["templates"] = self._templates()
        for setting in ("slaveTimeoutInSeconds", "slaveTimoutInSeconds"):
            if settings.number(setting) not in (0, DEFAULT_START_SECONDS):
                settings.change(setting, "becomes containerStartTimeout, which begins when the task is started; before "
                                "that, instanceLaunchTimeout limits the wait for room")
        if any(template["launch"].get("type") == "ec2" for template in cloud["templates"]):
            settings.consider("cluster", "set autoScalingGroup to its Auto Scaling group, so that it is scaled out "
                              "when there is no room, and the stack's AutoScalingGroupArns")
        return cloud

    def _lose_what_is_missing(self):
        lose, drop = self.settings.lose_if_set, self.settings.drop_if_set
        lose("agents connect by WebSocket, at Jenkins' own URL: no TCP port, no tunnel", "tunnel")
        lose("an agent is stopped when its build ends, and never kept for the next one", "retainAgents")
        drop("the functions use their own roles; delete the credential together with the plugin", "credentialsId")
        drop("nothing polls", "taskPollingIntervalInSeconds")

    def _templates(self):
        templates = self.settings.values.get("templates") or []
        paths = [f"{self.settings.path}.templates[{template_title(one, index)}]" for index, one in enumerate(templates)]
        converted = []
        for template, path in zip(templates, paths):
            merged, parent, keys = inherit(template, templates)
            inherited = dict.fromkeys(keys, paths[templates.index(parent)]) if keys else {}
            settings = Settings(merged, path, TEMPLATE_SETTINGS, self.report, inherited)
            if settings.has("inheritFrom"):
                self._report_inheritance(settings, parent)
            if "template-default" in (settings.text("templateName"), *settings.words("label", r"\s+")):
                settings.consider("label", "pipelines without inheritFrom inherit from this template; here, they name "
                                  "it: ecsAgent(label: 'template-default')")
            converted.append(Template(self, settings).convert())
        families = sorted({family(template["taskDefinition"]) for template in converted})
        for template in converted:
            if "taskDefinition" in template.get("allowedOverrides", []):
                template["allowedTaskDefinitions"] = families
        return converted

    def _report_inheritance(self, settings, parent):
        if parent is None:
            settings.change("inheritFrom", "no template has that label; nothing is inherited")
            return
        further = f", and without what {settings.text('inheritFrom')} inherits" if parent.get("inheritFrom") else ""
        settings.change("inheritFrom", "the inherited settings are written out, except jvmArgs and dnsSearchDomains"
                        f"{further}, as in the plugin")

    def overrides(self, on_fargate):
        """What a request may override."""
        words = [word.lower() for word in self.settings.words("allowedOverrides", ",")]
        if "all" in words:
            words = ["cpu", "memory", "environments", "ephemeralstoragesizeingib"]
        allowed = {OVERRIDES[word] for word in words if word in OVERRIDES}
        if not on_fargate:
            allowed.discard("ephemeralStorage")
        return sorted(allowed)

    def report_overrides(self):
        settings = self.settings
        words = settings.words("allowedOverrides", ",")
        if "all" in [word.lower() for word in words]:
            settings.change("allowedOverrides", "all becomes cpu, memory, environment and, on Fargate, "
                            "ephemeralStorage; add taskRole and taskDefinition if every pipeline may choose them")
            return
        if "image" in [word.lower() for word in words]:
            settings.change("allowedOverrides", "image becomes taskDefinition: a pipeline names a family of "
                            "allowedTaskDefinitions that has the image")
        for word in words:
            if word.lower() not in OVERRIDES and word.lower() not in NO_OVERRIDES:
                settings.lose("allowedOverrides", f"{word} cannot be overridden; create a template, or a task "
                              "definition and allow taskDefinition")

    def outputs(self):
        """The values of the main stack's parameters."""
        cluster = self.settings.text("cluster") or "default"
        values = {
            "ClusterArns": cluster if cluster.startswith("arn:") else ecs_arn(f"cluster/{cluster}"),
            "TaskDefinitionArns": ecs_arn(f"task-definition/jenkins-{self.name}-*"),
        }
        if self.roles:
            values["TaskRoleArns"] = {"Fn::Join": [",", self.roles]}
        stacks = dict.fromkeys(values, "forwarding.yaml" if self.settings.has("assumedRoleArn") else "the main stack")
        if self.settings.has("assumedRoleArn"):
            stacks["ClusterArns"] = "the main stack and forwarding.yaml"
        return {name: {"Description": f"For the parameter of that name of {stacks[name]}", "Value": value}
                for name, value in values.items()}

    def role(self, text):
        arn = text
        if not text.startswith("arn:"):
            arn = {"Fn::Sub": "arn:${AWS::Partition}:iam::${AWS::AccountId}:role/" + text}
        if arn not in self.roles:
            self.roles.append(arn)
        return arn

    def stack(self):
        return {
            "AWSTemplateFormatVersion": "2010-09-09",
            "Description": f"Task definitions of the agents in the cloud {self.name}.",
            "Metadata": {"Region": self.region},
            "Resources": self.resources,
            "Outputs": self.outputs(),
        }


class Template:
    """One template of a cloud: an entry of agents.yaml, and a task definition unless it names one."""

    def __init__(self, cloud, settings):
        self.cloud, self.settings = cloud, settings
        self.given = settings.text("taskDefinitionOverride")
        if re.fullmatch("arn:.+/[^:]+", self.given):
            self.given = family(self.given)
            settings.change("taskDefinitionOverride", "an ARN needs a revision here; the family means the latest")
        written = settings.text("templateName") if not self.given else ""
        self.name = cloud.template_names.make(written or family(self.given) or settings.text("label"))
        if written and written != self.name:
            settings.change("templateName", f"becomes {self.name}: 1 to 64 of A-Z a-z 0-9 _ -, unique")
        self.launch = self._launch()
        self.on_fargate = "FARGATE" in str(self.launch).upper()

    def convert(self):
        settings = self.settings
        template = {"name": self.name, "labels": self._labels()}
        template["taskDefinition"] = self.given or f"jenkins-{self.cloud.name}-{self.name}"
        if self.given and settings.has("agentContainerName"):
            template["container"] = settings.text("agentContainerName")
        elif self.given:
            settings.change("taskDefinitionOverride", "the agent is its only essential container; the plugin takes the "
                            "first. Set `container` if there are several")
        else:
            template["container"] = "agent"
            settings.drop_if_set("has no effect without taskDefinitionOverride, as in the plugin", "agentContainerName")
        template["connect"] = "inbound"
        if re.search(r"\s", settings.text("remoteFSRoot")):
            settings.lose("remoteFSRoot", "the official image accepts no white space there; /home/jenkins is used")
        elif settings.has("remoteFSRoot"):
            template["workspace"] = settings.text("remoteFSRoot")
        template |= self._life() | {"launch": self.launch} | self._network() | self._placement() | self._rest()
        settings.drop_if_set("each agent has its own file system; keep the workspace out of shared volumes",
                             "uniqueRemoteFSRoot")
        settings.drop_if_set("the plugin's own record", "dynamicTaskDefinition", "dynamicTaskDefinitionOverride")
        if not self.given:
            Definition(self, template).register()
        else:
            self._drop_what_the_definition_says()
            settings.consider("taskDefinitionOverride", "add its ARN, with a revision or :*, to the main stack's "
                              "TaskDefinitionArns, and its roles to TaskRoleArns")
        return template

    def _labels(self):
        settings = self.settings
        labels = settings.words("label", r"\s+")
        for label in labels:
            if re.search(r"[\"'\\]", label):
                settings.lose("label", f"{label} cannot be a label: it contains a quote or a backslash")
        labels = [label for label in labels if not re.search(r"[\"'\\]", label)]
        if not labels:
            settings.change("label", f"becomes {self.name}, because a template without labels serves no request")
        return labels or [self.name]

    def _life(self):
        """Times and executors, which are settings of the cloud in the plugin."""
        cloud, life = self.cloud.settings, {}
        start = cloud.number("slaveTimeoutInSeconds") or cloud.number("slaveTimoutInSeconds")
        if cloud.number("numExecutors") > 1:
            life["executors"] = cloud.number("numExecutors")
        if start > 0 and start != DEFAULT_START_SECONDS:
            life["containerStartTimeout"] = f"{start}s"
        if cloud.number("retentionTimeout") > 0:
            life["idleTimeout"] = f"{cloud.number('retentionTimeout')}m"
        return life

    def _launch(self):
        settings = self.settings
        providers = settings.entries("capacityProviderStrategies")
        if settings.flag("defaultCapacityProvider"):
            why = "defaultCapacityProvider takes precedence, as in the plugin"
            settings.drop_if_set(why, "capacityProviderStrategies")
            return {"type": "default"}
        if not providers:
            return {"type": settings.text("launchType").lower() or "ec2"}
        strategy = [{"name": one.text("provider"), "weight": one.number("weight")} for one in providers]
        for one, entry in zip(providers, strategy):
            if one.number("base"):
                entry["base"] = one.number("base")
        if not any(entry["weight"] for entry in strategy):
            strategy[0]["weight"] = 1
            settings.change("capacityProviderStrategies", "one weight must be greater than 0: the first becomes 1")
        return {"capacityProviders": strategy}

    def _network(self):
        settings = self.settings
        awsvpc = self.on_fargate or settings.text("networkMode") == "awsvpc" or self.given
        if not awsvpc:
            why = "has no effect without network mode awsvpc, as in the plugin"
            settings.drop_if_set(why, "subnets", "securityGroups", "assignPublicIp")
            return {}
        if not self.on_fargate and self.given and not settings.has("subnets"):
            return {}
        network = {"subnets": settings.words("subnets", ",")}
        if not network["subnets"]:
            network["subnets"] = ["FILL IN"]
            settings.fill_in("subnets", "a task in network mode awsvpc needs subnets")
        if settings.has("securityGroups"):
            network["securityGroups"] = settings.words("securityGroups", ",")
        if settings.flag("assignPublicIp") and self.on_fargate:
            network["assignPublicIp"] = True
        elif settings.flag("assignPublicIp"):
            settings.lose("assignPublicIp", "ECS supports it only on Fargate")
        return {"network": network}

    def _placement(self):
        settings = self.settings
        if settings.has("platformVersion") and not self.on_fargate:
            settings.drop_if_set(ONLY_ON_FARGATE, "platformVersion")
        elif settings.has("platformVersion"):
            return {"platformVersion": settings.text("platformVersion")}
        if self.on_fargate:
            settings.lose_if_set(NOT_ON_FARGATE, "placementStrategies")
            return {}
        strategies = []
        for one in settings.entries("placementStrategies"):
            kind = one.text("type").lower()
            strategies.append({"type": kind} | ({"field": one.text("field")} if kind != "random" else {}))
        return {"placementStrategy": strategies} if strategies else {}

    def _rest(self):
        settings, rest = self.settings, {}
        if settings.flag("enableExecuteCommand"):
            rest["enableExecuteCommand"] = True
        environment = settings.pairs("environments")
        in_clear = ", ".join(one.text("name") for one in settings.entries("environments")
                             if isinstance(one.values.get("value"), Resolved) and one.text("name") in environment)
        if in_clear:
            settings.change("environments", f"{in_clear}: the variable's value is written in clear; if it is a secret, "
                            "move it to the task definition's Secrets")
        for name in sorted(set(environment) & RESERVED_VARIABLES):
            settings.lose("environments", f"{name} is set by the launch")
            del environment[name]
        if environment:
            rest["environment"] = environment
        if settings.pairs("tags"):
            rest["tags"] = settings.pairs("tags")
        allowed = self.cloud.overrides(self.on_fargate)
        limits = {"cpu": self.cloud.settings.number("maxCpu"),
                  "memory": max(self.cloud.settings.number(key) for key in ("maxMemory", "maxMemoryReservation"))}
        limits = {key: value for key, value in limits.items() if value and key in allowed}
        if allowed:
            rest["allowedOverrides"] = allowed
        if limits:
            rest["limits"] = limits
        return rest

    def _drop_what_the_definition_says(self):
        elsewhere = {"agentContainerName", "assignPublicIp", "capacityProviderStrategies", "defaultCapacityProvider",
                     "dynamicTaskDefinition", "dynamicTaskDefinitionOverride", "enableExecuteCommand", "environments",
                     "inheritFrom", "label", "launchType", "placementStrategies", "platformVersion", "remoteFSRoot",
                     "securityGroups", "subnets", "tags", "taskDefinitionOverride", "uniqueRemoteFSRoot"}
        why = "the task definition decides, as in the plugin"
        self.settings.drop_if_set(why, *sorted(TEMPLATE_SETTINGS - elsewhere))


class Definition:
    """The task definition that the plugin registers for a template, as a CloudFormation resource."""

    def __init__(self, template, entry):
        self.template, self.settings, self.entry = template, template.settings, entry
        self.on_fargate = template.on_fargate
        self.container = {"Name": "agent", "Image": template.settings.text("image"), "Essential": True}
        self.properties = {"Family": entry["taskDefinition"]}
        self.linux = {}

    def register(self):
        self._image()
        self._size()
        self._process()
        self._platform()
        self._volumes()
        self._ports()
        for key, name in (("taskrole", "TaskRoleArn"), ("executionRole", "ExecutionRoleArn")):
            if self.settings.has(key):
                self.properties[name] = self.template.cloud.role(self.settings.text(key))
        if self.linux:
            self.container["LinuxParameters"] = self.linux
        self.properties["ContainerDefinitions"] = [self.container]
        identifier = "".join(word.capitalize() for word in re.split(r"[_-]+", self.template.name))
        self.template.cloud.resources["TaskDefinition" + identifier] = {
            "Type": "AWS::ECS::TaskDefinition", "Properties": self.properties}

    def _image(self):
        settings = self.settings
        if not settings.has("image"):
            self.container["Image"] = "jenkins/inbound-agent:latest"
            settings.fill_in("image", "is not set; jenkins/inbound-agent is used")
        if "jnlp-" in settings.text("image"):
            settings.change("image", "old images of this name do not support WebSocket: use jenkins/inbound-agent 4.3 "
                            "or newer, or an image built on it")
        if settings.has("repositoryCredentials"):
            self.container["RepositoryCredentials"] = {"CredentialsParameter": settings.text("repositoryCredentials")}

    def _size(self):
        """A size that a request may override is set on the task: overrides do not change the container's size."""
        settings, allowed = self.settings, self.entry.get("allowedOverrides", [])
        cpu, memory, reserved = (settings.number(key) for key in ("cpu", "memory", "memoryReservation"))
        if self.on_fargate:
            self.properties["Cpu"], self.properties["Memory"] = str(cpu or 256), str(reserved or memory or 512)
            if not cpu or not (memory or reserved):
                settings.fill_in("cpu", "Fargate needs cpu and memory; the least is used")
        else:
            if not (memory or reserved):
                reserved = 512
                settings.fill_in("memory", "a container needs memory; 512 MiB are used")
            if cpu and "cpu" in allowed:
                self.properties["Cpu"] = str(cpu)
            elif cpu:
                self.container["Cpu"] = cpu
            if memory and "memory" in allowed:
                self.properties["Memory"] = str(memory)
                if reserved:
                    settings.change("memoryReservation", f"the task reserves its whole memory, {memory} MiB: a request "
                                    "may override it, and overrides apply to the task")
            elif memory:
                self.container["Memory"] = memory
            if reserved:
                self.container["MemoryReservation"] = reserved
        if settings.has("ephemeralStorageSizeInGiB") and self.on_fargate:
            self.properties["EphemeralStorage"] = {"SizeInGiB": settings.number("ephemeralStorageSizeInGiB")}
        else:
            settings.drop_if_set(ONLY_ON_FARGATE, "ephemeralStorageSizeInGiB")

    def _process(self):
        settings = self.settings
        if settings.has("entrypoint"):
            self.container["EntryPoint"] = settings.text("entrypoint").split()
            settings.change("entrypoint", "gets no arguments here; it must read JENKINS_URL, JENKINS_AGENT_NAME, "
                            "JENKINS_SECRET and so on from the environment, as the official image does")
        if settings.has("jvmArgs"):
            self.container["Environment"] = [{"Name": "JAVA_OPTS", "Value": settings.text("jvmArgs")}]
        if settings.has("containerUser"):
            self.container["User"] = settings.text("containerUser")
        if settings.has("logDriver"):
            self.container["LogConfiguration"] = {"LogDriver": settings.text("logDriver"),
                                                  "Options": settings.pairs("logDriverOptions")}
        else:
            settings.drop_if_set("has no effect without logDriver, as in the plugin", "logDriverOptions")
        if settings.entries("ulimits"):
            self.container["Ulimits"] = [
                {"Name": one.text("ulimitName"),
                 "SoftLimit": one.number("softLimit"), "HardLimit": one.number("hardLimit")}
                for one in settings.entries("ulimits")]
        if self.on_fargate:
            settings.lose_if_set(NOT_ON_FARGATE, "privileged", "sharedMemorySize", "dnsSearchDomains")
        else:
            self._host_process()
        capabilities = settings.words("kernelCapabilities", ",")
        refused = [name for name in capabilities if self.on_fargate and name != "SYS_PTRACE"]
        if refused:
            settings.lose("kernelCapabilities", f"{', '.join(refused)}: Fargate supports only SYS_PTRACE")
        if len(capabilities) > len(refused):
            self.linux["Capabilities"] = {"Add": [name for name in capabilities if name not in refused]}

    def _host_process(self):
        settings = self.settings
        if settings.flag("privileged"):
            self.container["Privileged"] = True
        if settings.has("sharedMemorySize"):
            self.linux["SharedMemorySize"] = settings.number("sharedMemorySize")
        if settings.has("dnsSearchDomains"):
            self.container["DnsSearchDomains"] = settings.text("dnsSearchDomains").split()

    def _platform(self):
        settings = self.settings
        mode = settings.text("networkMode")
        if self.on_fargate:
            self.properties |= {"NetworkMode": "awsvpc", "RequiresCompatibilities": ["FARGATE"]}
            if mode not in ("", "default", "awsvpc"):
                settings.change("networkMode", "becomes awsvpc, the only mode on Fargate, as in the plugin")
            system, processor = settings.text("operatingSystemFamily"), settings.text("cpuArchitecture")
            platform = {"OperatingSystemFamily": system} if system else {}
            platform |= {"CpuArchitecture": processor} if processor else {}
            if platform:
                self.properties["RuntimePlatform"] = platform
            return
        settings.drop_if_set(ONLY_ON_FARGATE, "operatingSystemFamily", "cpuArchitecture")
        if mode not in ("", "default"):
            self.properties["NetworkMode"] = mode

    def _volumes(self):
        settings, volumes, mounts = self.settings, [], []
        for one in settings.entries("mountPoints"):
            volume = {"Name": one.text("name")}
            if one.has("sourcePath") and self.on_fargate:
                one.lose("sourcePath", "Fargate has no host path to mount; the volume is empty and belongs to the task")
            elif one.has("sourcePath"):
                volume["Host"] = {"SourcePath": one.text("sourcePath")}
            volumes.append(volume)
            mounts.append(mount(one))
        for one in settings.entries("efsMountPoints"):
            volumes.append({"Name": one.text("name"), "EFSVolumeConfiguration": file_system(one)})
            mounts.append(mount(one))
        if volumes:
            self.properties["Volumes"], self.container["MountPoints"] = volumes, mounts

    def _ports(self):
        settings = self.settings
        ports = []
        for one in settings.entries("portMappings"):
            port = {"ContainerPort": one.number("containerPort")}
            port |= {"HostPort": one.number("hostPort")} if one.has("hostPort") else {}
            port |= {"Protocol": one.text("protocol")} if one.has("protocol") else {}
            ports.append(port)
        if ports:
            self.container["PortMappings"] = ports
        if self.properties.get("NetworkMode") == "awsvpc":
            settings.lose_if_set("ECS does not support it in network mode awsvpc", "extraHosts")
        elif settings.entries("extraHosts"):
            self.container["ExtraHosts"] = [
                {"IpAddress": one.text("ipAddress"), "Hostname": one.text("hostname")}
                for one in settings.entries("extraHosts")]


def mount(entry):
    made = {"SourceVolume": entry.text("name"), "ContainerPath": entry.text("containerPath")}
    return made | ({"ReadOnly": True} if entry.flag("readOnly") else {})


def file_system(entry):
    made = {"FilesystemId": entry.text("fileSystemId")}
    if entry.has("rootDirectory"):
        made["RootDirectory"] = entry.text("rootDirectory")
    if entry.has("accessPointId"):
        iam = "ENABLED" if entry.flag("iam") else "DISABLED"
        made["AuthorizationConfig"] = {"AccessPointId": entry.text("accessPointId"), "IAM": iam}
        if not entry.flag("transitEncryption"):
            entry.change("transitEncryption", "is enabled: an access point needs it")
    elif entry.flag("iam"):
        entry.drop_if_set("has no effect without accessPointId, as in the plugin", "iam")
    encrypted = entry.flag("transitEncryption") or entry.has("accessPointId")
    made["TransitEncryption"] = "ENABLED" if encrypted else "DISABLED"
    return made


def family(definition):
    return definition.rsplit("/", 1)[-1].split(":")[0]


def ecs_arn(resource):
    return {"Fn::Sub": "arn:${AWS::Partition}:ecs:${AWS::Region}:${AWS::AccountId}:" + resource}


def arn_region(text):
    return text.split(":")[3] if text.startswith("arn:") and text.count(":") >= 5 else ""


def read(files):
    """The ecs clouds and the controller's URL with their variables resolved, and the kinds of the other clouds."""
    variables, clouds, others, url = Variables(os.environ), [], [], ""
    for file in files:
        try:
            document = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise Fault(f"{file}: {error}") from error
        if not isinstance(document, dict):
            raise Fault(f"{file}: is not configuration as code")
        for cloud in (document.get("jenkins") or {}).get("clouds") or []:
            kind, values = next(iter(cloud.items()))
            if kind == "ecs":
                clouds.append(variables.resolve(values))
            else:
                others.append(kind)
        location = (document.get("unclassified") or {}).get("location") or {}
        url = variables.resolve(location.get("url") or "") or url
    if variables.lookups:
        names = ", ".join("${%s:…}" % name for name in sorted(variables.lookups))
        raise Fault(f"{names}: is evaluated only by Jenkins. Write the value in its place, in a copy of the file")
    if variables.missing:
        names = ", ".join(sorted(variables.missing))
        raise Fault(f"these variables are not set: {names}. "
                    "Export them with the values that Jenkins sees, and run this again")
    if not clouds:
        raise Fault(f"no ecs cloud under jenkins.clouds in {', '.join(files)}")
    return clouds, others, url


def convert(clouds, url, options):
    """agents.yaml, the templates by file name, and the report."""
    report, names = Report(), Names()
    url = str(options.jenkins_url or url)
    if not url and clouds[0].get("jenkinsUrl"):
        url = str(clouds[0]["jenkinsUrl"])
        report.add("FILL IN", "unclassified.location.url", f"is not set; jenkins.url is {url}, from jenkinsUrl of "
                   "the first cloud. It must be the Jenkins URL of Manage Jenkins > System, and the functions must "
                   "reach it")
    if not url:
        raise Fault("unclassified.location.url is not set: name the controller's URL with --jenkins-url")
    agents = {
        "jenkins": {
            # Jenkins appends the slash, too (JenkinsLocationConfiguration.setUrl).
            "url": url.rstrip("/") + "/",
            "user": "ecs-agents",
            "apiToken": {"ssm": "/jenkins/ecs-agents/api-token"},
            "webhook": {"authorization": {"ssm": "/jenkins/ecs-agents/webhook"}},
        },
        "clouds": [],
    }
    stacks = {}
    for index, values in enumerate(clouds):
        title = (isinstance(values, dict) and values.get("name")) or index
        settings = Settings(values, f"clouds[{title}]", CLOUD_SETTINGS, report)
        cloud = Cloud(settings, names, options)
        cloud.report_overrides()
        converted = cloud.convert(url)
        if not converted["templates"]:
            settings.lose("templates", "there are none; the cloud is omitted")
            continue
        agents["clouds"].append(converted)
        if cloud.resources:
            stacks[f"task-definitions-{cloud.name}.yaml"] = cloud.stack()
    if not agents["clouds"]:
        raise Fault("no cloud has a template; there is nothing to convert")
    regions = sorted({cloud["region"] for cloud in agents["clouds"]})
    if len(regions) > 1:
        report.add("new here", "clouds", f"they are in {', '.join(regions)}: deploy forwarding.yaml in each of these "
                   "regions except the stack's, so that events of its clusters reach the stack")
    return agents, stacks, report


def write(path, text, force):
    if path.exists() and not force:
        raise Fault(f"{path} exists already: use another --out, or --force")
    path.write_text(text, encoding="utf-8")


class Dumper(yaml.SafeDumper):
    """Writes no anchors, and lists of plain values on one line."""

    def ignore_aliases(self, _):
        return True

    def represent_sequence(self, tag, sequence, flow_style=None):
        flat = not any(isinstance(value, (dict, list)) for value in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)


def dump(value):
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, width=118, allow_unicode=True)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="./local/convert", description=(
        "Converts the ecs clouds of Jenkins configuration as code to agents.yaml and CloudFormation templates of the "
        "task definitions, and reports what became of each setting. A setting that is not reported has the same "
        "effect as before. Variables of the configuration are read from the environment."))
    parser.add_argument("files", nargs="+", metavar="jenkins.yaml", help="the configuration, in one or several files")
    parser.add_argument("--out", default=".", metavar="FOLDER", help="where to write; default: the current folder")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--jenkins-url", metavar="URL", help="the controller's URL; default: unclassified.location.url")
    parser.add_argument("--region", metavar="REGION", help="the region of clouds without regionName")
    return parser.parse_args(arguments)


def main(arguments):
    options = parse(arguments)
    try:
        clouds, others, url = read(options.files)
        agents, stacks, report = convert(clouds, url, options)
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        for name, content in ({"agents.yaml": agents} | stacks).items():
            write(out / name, dump(content), options.force)
    except Fault as fault:
        print(f"convert: {fault}", file=sys.stderr)
        return 1
    for kind in others:
        print(f"ignored         a cloud of the type {kind}")
    entries = report.read()
    for kind, text in entries:
        print(f"{kind:<14}  {text}")
    written = ", ".join(["agents.yaml", *stacks])
    open_ones = sum(kind in ("NOT TAKEN OVER", "FILL IN") for kind, _ in entries)
    needs = "setting needs" if open_ones == 1 else "settings need"
    print(f"\n{written} written to {out}; {open_ones} {needs} a decision.")
    print("For the label listener's ecs-agents.properties:")
    for line in listener_properties(agents["clouds"]):
        print(f"  {line}")
    print("Next steps: docs/coming-from-amazon-ecs-plugin.md")
    return 0


def listener_properties(clouds):
    """Settings that depend on the templates. The listener asks again once a request cannot be served any more."""
    templates = [template for cloud in clouds for template in cloud["templates"]]
    yield "templates = " + "; ".join(" ".join(template["labels"]) for template in templates)
    # By default, a request waits 15 minutes for room, its task starts within 15, and the listener asks again after 35.
    default = f"{DEFAULT_START_SECONDS}s"
    longest = max(int(template.get("containerStartTimeout", default)[:-1]) for template in templates)
    if longest > DEFAULT_START_SECONDS:
        yield f"askAgainMinutes = {20 + -(-longest // 60)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
