//! The small services: SSM parameters, the event bus, STS.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ApiError;

/// SSM's parameters.
#[derive(Debug, Default)]
pub struct Parameters {
    /// Names and values.
    pub values: BTreeMap<String, String>,
}

impl Parameters {
    /// Answers a call.
    pub(super) fn call(&mut self, action: &str, input: &Value) -> Result<Value, ApiError> {
        let parameter = |name: &str, value: &str| json!({"Name": name, "Value": value, "Type": "SecureString", "Version": 1});
        match action {
            "GetParameter" => {
                let name = input["Name"].as_str().unwrap_or_default();
                match self.values.get(name) {
                    Some(value) => Ok(json!({"Parameter": parameter(name, value)})),
                    None => Err(ApiError::new("ParameterNotFound", "")),
                }
            }
            "GetParameters" => {
                let names: Vec<&str> = input["Names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                if names.len() > 10 {
                    return Err(ApiError::new("ValidationException", "Names: 10 at most"));
                }
                let (known, unknown): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| self.values.contains_key(*name));
                let found: Vec<_> = known.into_iter().map(|name| parameter(name, &self.values[name])).collect();
                Ok(json!({"Parameters": found, "InvalidParameters": unknown}))
            }
            "GetParametersByPath" => {
                let path = input["Path"].as_str().unwrap_or_default().trim_end_matches('/');
                let all: Vec<_> = self
                    .values
                    .iter()
                    .filter(|(name, _)| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
                    .map(|(name, value)| parameter(name, value))
                    .collect();
                // Ten a page at most (API_GetParametersByPath), and in no order that anybody may count on.
                let from: usize = input["NextToken"].as_str().and_then(|token| token.parse().ok()).unwrap_or(0);
                let page: Vec<_> = all.iter().rev().skip(from).take(10).cloned().collect();
                let next = (from + 10 < all.len()).then(|| (from + 10).to_string());
                Ok(json!({"Parameters": page, "NextToken": next}))
            }
            _ => Err(ApiError::new("InvalidAction", format!("ssm {action} is not simulated"))),
        }
    }
}

/// The event bus, as a list of what was put on it.
#[derive(Debug, Default)]
pub struct Bus {
    /// The entries, as they were put.
    pub entries: Vec<Value>,
}

impl Bus {
    /// Answers a call.
    pub(super) fn call(&mut self, action: &str, input: &Value) -> Result<Value, ApiError> {
        if action != "PutEvents" {
            return Err(ApiError::new("InvalidAction", format!("events {action} is not simulated")));
        }
        let entries: Vec<Value> = input["Entries"].as_array().cloned().unwrap_or_default();
        let answers: Vec<_> = (0..entries.len()).map(|index| json!({"EventId": format!("event-{index}")})).collect();
        self.entries.extend(entries);
        Ok(json!({"FailedEntryCount": 0, "Entries": answers}))
    }
}

/// STS: who one is, and another role.
pub(super) fn sts(action: &str, form: &BTreeMap<String, String>, account: &str) -> Result<String, ApiError> {
    match action {
        "GetCallerIdentity" => Ok(format!(
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
             <Arn>arn:aws:sts::{account}:assumed-role/function/session</Arn><UserId>AROA:session</UserId>\
             <Account>{account}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
        )),
        "AssumeRole" => {
            let role = form.get("RoleArn").cloned().unwrap_or_default();
            Ok(format!(
                "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult>\
                 <Credentials><AccessKeyId>ASIAASSUMED</AccessKeyId><SecretAccessKey>assumed</SecretAccessKey>\
                 <SessionToken>token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
                 <AssumedRoleUser><Arn>{role}/s</Arn><AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser>\
                 </AssumeRoleResult></AssumeRoleResponse>"
            ))
        }
        _ => Err(ApiError::new("InvalidAction", format!("sts {action} is not simulated"))),
    }
}
