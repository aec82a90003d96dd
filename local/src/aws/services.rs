//! The small services: SSM parameters, the event bus, STS.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ApiError, escape};

/// SSM's parameters.
#[derive(Debug, Default)]
pub struct Parameters {
    /// Names and values.
    pub values: BTreeMap<String, String>,
    /// The ARN of the customer managed key that encrypts them; none for the AWS managed key.
    pub key: Option<String>,
}

impl Parameters {
    /// Answers a call. Every parameter is a SecureString, so without decryption its value is not returned.
    pub(super) fn call(&mut self, action: &str, input: &Value) -> Result<Value, ApiError> {
        let decrypted = input["WithDecryption"] == true;
        let parameter = |(name, value): (&str, &str)| {
            let value = if decrypted { value } else { "AQICAHencrypted" };
            json!({"Name": name, "Value": value, "Type": "SecureString", "Version": 1})
        };
        match action {
            "GetParameter" => match self.values.get_key_value(input["Name"].as_str().unwrap_or_default()) {
                Some((name, value)) => Ok(json!({"Parameter": parameter((name, value))})),
                None => Err(ApiError::new("ParameterNotFound", "")),
            },
            "GetParameters" => {
                let names: Vec<&str> =
                    input["Names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                if !(1..=10).contains(&names.len()) {
                    return Err(ApiError::new("ValidationException", "names has to have 1 to 10 members"));
                }
                let (mut found, mut unknown) = (Vec::new(), Vec::new());
                for name in names {
                    match self.values.get(name) {
                        Some(value) => found.push(parameter((name, value))),
                        None => unknown.push(name),
                    }
                }
                Ok(json!({"Parameters": found, "InvalidParameters": unknown}))
            }
            "GetParametersByPath" => {
                let path = input["Path"].as_str().unwrap_or_default().trim_end_matches('/');
                let recursive = input["Recursive"] == true;
                let below = |name: &str| {
                    let rest = name.strip_prefix(path).and_then(|rest| rest.strip_prefix('/'));
                    rest.is_some_and(|rest| recursive || !rest.contains('/'))
                };
                // At most ten per page (API_GetParametersByPath), in an unspecified order.
                let all = self.values.iter().rev().filter(|(name, _)| below(name));
                let most = input["MaxResults"].as_u64().unwrap_or(10).clamp(1, 10) as usize;
                let from: usize = match input["NextToken"].as_str() {
                    None => 0,
                    Some(token) => {
                        token.parse().map_err(|_| ApiError::new("InvalidNextToken", "The token is not valid."))?
                    }
                };
                let mut rest = all.skip(from).map(|(name, value)| parameter((name, value)));
                let page: Vec<_> = rest.by_ref().take(most).collect();
                let next = rest.next().map(|_| (from + most).to_string());
                Ok(json!({"Parameters": page, "NextToken": next}))
            }
            _ => Err(ApiError::new("InvalidAction", format!("ssm:{action} is not simulated"))),
        }
    }
}

/// The event buses, as a list of their entries.
#[derive(Debug, Default)]
pub struct Bus {
    /// The entries, as they were put.
    pub entries: Vec<Value>,
}

impl Bus {
    /// Answers a call.
    pub(super) fn call(&mut self, action: &str, input: &Value) -> Result<Value, ApiError> {
        if action != "PutEvents" {
            return Err(ApiError::new("InvalidAction", format!("events:{action} is not simulated")));
        }
        let entries = input["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
        // API_PutEvents: one to ten entries; a batch is validated as a whole.
        if !(1..=10).contains(&entries.len()) {
            return Err(ApiError::new("ValidationException", "entries has to have 1 to 10 members"));
        }
        let mut failed = 0;
        let mut answers = Vec::new();
        for entry in entries {
            let source = entry["Source"].as_str().unwrap_or_default();
            let detail: Result<Value, _> = serde_json::from_str(entry["Detail"].as_str().unwrap_or_default());
            let fault = match (source, detail) {
                (source, _) if source.starts_with("aws.") => Some("NotAuthorizedForSourceException"),
                ("", _) => Some("InvalidArgument"),
                (_, Ok(Value::Object(_))) => None,
                _ => Some("MalformedDetail"),
            };
            match fault {
                Some(code) => {
                    failed += 1;
                    answers.push(json!({"ErrorCode": code, "ErrorMessage": code}));
                }
                None => {
                    self.entries.push(entry.clone());
                    answers.push(json!({"EventId": format!("{:08x}-0000-4000-8000-000000000000", self.entries.len())}));
                }
            }
        }
        Ok(json!({"FailedEntryCount": failed, "Entries": answers}))
    }
}

/// The prefix of the access keys of assumed roles here; the role's account follows, then the key that assumed it.
const ASSUMED: &str = "ASIA";

/// The account of an access key that [`sts`] issued.
pub(super) fn account_of(access_key: &str) -> Option<&str> {
    access_key.strip_prefix(ASSUMED)?.get(..12)
}

/// STS: the caller's identity, and AssumeRole.
pub(super) fn sts(
    action: &str,
    form: &BTreeMap<String, String>,
    account: &str,
    caller: &str,
) -> Result<String, ApiError> {
    const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
    match action {
        "GetCallerIdentity" => Ok(format!(
            "<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\"><GetCallerIdentityResult>\
             <Arn>arn:aws:sts::{account}:assumed-role/function/session</Arn><UserId>AROA:session</UserId>\
             <Account>{account}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
        )),
        "AssumeRole" => {
            let role = form.get("RoleArn").map(String::as_str).unwrap_or_default();
            let session = escape(form.get("RoleSessionName").map(String::as_str).unwrap_or_default());
            let denied = || ApiError {
                status: 403,
                ..ApiError::new("AccessDenied", format!("not authorized to perform sts:AssumeRole on {role}"))
            };
            let account = role.split(':').nth(4).filter(|account| account.len() == 12).ok_or_else(denied)?;
            let role = escape(&role.replace(":role/", ":assumed-role/").replace(":iam:", ":sts:"));
            Ok(format!(
                "<AssumeRoleResponse xmlns=\"{NAMESPACE}\"><AssumeRoleResult>\
                 <Credentials><AccessKeyId>{ASSUMED}{account}{caller}</AccessKeyId><SecretAccessKey>assumed</SecretAccessKey>\
                 <SessionToken>token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
                 <AssumedRoleUser><Arn>{role}/{session}</Arn><AssumedRoleId>AROA:{session}</AssumedRoleId></AssumedRoleUser>\
                 </AssumeRoleResult></AssumeRoleResponse>"
            ))
        }
        _ => Err(ApiError::new("InvalidAction", format!("sts:{action} is not simulated"))),
    }
}
