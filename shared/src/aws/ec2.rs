//! The queries of Amazon EC2, signed by the SDK's own signer.
//!
//! `aws-sdk-ec2` would add minutes to every clean build (docs/adr/0004).

use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::ProvideCredentials as _;
use aws_credential_types::provider::error::CredentialsError;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_types::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use bytes::Bytes;
use jiff::Timestamp;

use crate::config::Address;
use crate::fault::Fault;
use crate::http::Http;
use crate::metrics;

/// Timeout of one call; EC2's reads take tens of milliseconds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The part of an answer that is read, in bytes: a page of instances has a few kilobytes each.
const LIMIT: usize = 4 * 1024 * 1024;

/// Calls EC2 in one region.
#[derive(Debug, Clone)]
pub struct Client {
    sdk: SdkConfig,
    endpoint: String,
    http: Http,
}

/// The addresses of an instance or a network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4 inside the VPC.
    pub private: Option<String>,
    /// IPv4 from the internet.
    pub public: Option<String>,
    /// IPv6, the same inside and outside; without brackets.
    pub ipv6: Option<String>,
}

impl Addresses {
    /// IPv4 of this kind, or IPv6 where there is no other.
    pub fn host(&self, kind: Address) -> Option<String> {
        match kind {
            Address::Private => self.private.clone(),
            Address::Public => self.public.clone(),
        }
        .or_else(|| self.ipv6.clone())
    }
}

impl Client {
    /// Builds the client; nothing is called yet. The endpoint comes from the SDK's standard environment.
    pub fn new(sdk: &SdkConfig, http: Http) -> Self {
        let key = ServiceConfigKey::builder().service_id("EC2").env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
        let own = key.ok().and_then(|key| sdk.service_config()?.load_config(key));
        let region = sdk.region().map_or("us-east-1", |region| region.as_ref());
        let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
        let endpoint = own
            .or_else(|| sdk.endpoint_url().map(str::to_owned))
            .unwrap_or_else(|| format!("https://ec2.{region}.amazonaws.com{suffix}"));
        Self { sdk: sdk.clone(), endpoint, http }
    }

    /// Addresses and tags of an instance (API_DescribeInstances).
    ///
    /// # Errors
    /// When the call failed or EC2 does not know the instance.
    pub async fn instance(&self, id: &str) -> Result<(Addresses, Vec<(String, String)>), Fault> {
        let text = self.describe_instance(id).await?;
        let document = parse(DESCRIBE_INSTANCES, &text)?;
        let instance = find_instance(&document, id)?;
        let tags = instance
            .children()
            .filter(|node| node.has_tag_name_any("tagSet"))
            .flat_map(|set| set.children())
            .filter_map(|item| Some((item.text_of("key")?, item.text_of("value").unwrap_or_default())))
            .collect();
        let addresses = Addresses {
            private: instance.text_of("privateIpAddress"),
            public: instance.text_of("ipAddress"),
            ipv6: instance.text_of("ipv6Address"),
        };
        Ok((addresses, tags))
    }

    /// The code of an instance's state reason: `Server.SpotInstanceTermination`. `None` if there is none, or if EC2
    /// has forgotten the instance: it shows a terminated one for about an hour.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn state_reason(&self, id: &str) -> Result<Option<String>, Fault> {
        let text = match self.describe_instance(id).await {
            Err(fault) if fault.code.as_deref() == Some("InvalidInstanceID.NotFound") => return Ok(None),
            answer => answer?,
        };
        let document = parse(DESCRIBE_INSTANCES, &text)?;
        let Ok(instance) = find_instance(&document, id) else { return Ok(None) };
        let reason = instance.children().find(|node| node.has_tag_name_any("stateReason"));
        Ok(reason.and_then(|reason| reason.text_of("code")))
    }

    async fn describe_instance(&self, id: &str) -> Result<String, Fault> {
        self.call(DESCRIBE_INSTANCES, &[("Action", "DescribeInstances"), ("InstanceId.1", id)]).await
    }

    /// Launch times of instances; those that EC2 does not know are missing.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn launch_times(&self, ids: &[&str]) -> Result<BTreeMap<String, Timestamp>, Fault> {
        const ACTION: &str = "ec2:DescribeInstances";
        // Unlike a list of ids, a filter does not fail for one that EC2 has forgotten. It accepts at most 200 values
        // (API_DescribeInstances).
        let mut times = BTreeMap::new();
        for ids in ids.chunks(200) {
            let names: Vec<String> = (1..=ids.len()).map(|number| format!("Filter.1.Value.{number}")).collect();
            let mut parameters = vec![("Action", "DescribeInstances"), ("Filter.1.Name", "instance-id")];
            parameters.extend(names.iter().map(String::as_str).zip(ids.iter().copied()));
            let text = self.call(ACTION, &parameters).await?;
            let document = parse(ACTION, &text)?;
            let launched = |id: &&str| {
                Some(((*id).to_owned(), find_instance(&document, id).ok()?.text_of("launchTime")?.parse().ok()?))
            };
            times.extend(ids.iter().filter_map(launched));
        }
        Ok(times)
    }

    /// The addresses of a network interface (API_DescribeNetworkInterfaces).
    ///
    /// # Errors
    /// When the call failed.
    pub async fn interface(&self, id: &str) -> Result<Addresses, Fault> {
        const ACTION: &str = "ec2:DescribeNetworkInterfaces";
        let text = self.call(ACTION, &[("Action", "DescribeNetworkInterfaces"), ("NetworkInterfaceId.1", id)]).await?;
        let document = parse(ACTION, &text)?;
        let first = |name: &str| {
            document
                .descendants()
                .find(|node| node.has_tag_name_any(name))
                .and_then(|node| node.text())
                .map(str::to_owned)
        };
        Ok(Addresses { private: first("privateIpAddress"), public: first("publicIp"), ipv6: first("ipv6Address") })
    }

    async fn call(&self, action: &'static str, parameters: &[(&str, &str)]) -> Result<String, Fault> {
        let failed = |message: String| fault(action, None, message);
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(parameters)
            .append_pair("Version", "2016-11-15")
            .finish();
        let mut request = http::Request::post(format!("{}/", self.endpoint.trim_end_matches('/')))
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
            .body(Bytes::from(body))
            .map_err(|error| failed(error.to_string()))?;
        self.sign(&mut request).await.map_err(failed)?;
        metrics::AWS_CALLS.increment();
        let answer = self.http.send(request, TIMEOUT, LIMIT).await.map_err(|error| failed(error.to_string()))?;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        if answer.status().is_success() {
            return Ok(text);
        }
        let document = parse(action, &text)?;
        let first =
            |name: &str| document.descendants().find(|node| node.has_tag_name_any(name)).and_then(|node| node.text());
        Err(fault(action, first("Code").map(str::to_owned), first("Message").unwrap_or("no message").to_owned()))
    }

    async fn sign(&self, request: &mut http::Request<Bytes>) -> Result<(), String> {
        let credentials = self.sdk.credentials_provider().ok_or("no AWS credentials are set")?;
        // The cause is in the source: the error itself says only that there are no credentials.
        let reason = |error: CredentialsError| error.source().map_or_else(|| error.to_string(), ToString::to_string);
        let credentials = credentials.provide_credentials().await.map_err(reason)?;
        let identity = credentials.into();
        let region = self.sdk.region().map(|region| region.as_ref()).unwrap_or_default();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name("ec2")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| error.to_string())?
            .into();
        let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let uri = request.uri().to_string();
        let signable = SignableRequest::new("POST", uri, headers, SignableBody::Bytes(request.body()))
            .map_err(|error| error.to_string())?;
        let (instructions, _) = sign(signable, &parameters).map_err(|error| error.to_string())?.into_parts();
        instructions.apply_to_request_http1x(request);
        Ok(())
    }
}

const DESCRIBE_INSTANCES: &str = "ec2:DescribeInstances";

fn find_instance<'d, 'i>(document: &'d roxmltree::Document<'i>, id: &str) -> Result<roxmltree::Node<'d, 'i>, Fault> {
    document
        .descendants()
        .find(|node| node.has_tag_name_any("instanceId") && node.text() == Some(id))
        .and_then(|node| node.parent())
        .ok_or_else(|| fault(DESCRIBE_INSTANCES, None, format!("no instance {id} in the answer")))
}

fn parse<'a>(action: &'static str, text: &'a str) -> Result<roxmltree::Document<'a>, Fault> {
    roxmltree::Document::parse(text).map_err(|error| fault(action, None, format!("not XML: {error}")))
}

fn fault(action: &'static str, code: Option<String>, message: String) -> Fault {
    Fault::from_aws(action, code, message)
}

trait AnyNamespace {
    fn has_tag_name_any(&self, name: &str) -> bool;

    /// The text of the first child of this name.
    fn text_of(&self, name: &str) -> Option<String>;
}

impl AnyNamespace for roxmltree::Node<'_, '_> {
    fn has_tag_name_any(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }

    fn text_of(&self, name: &str) -> Option<String> {
        Some(self.children().find(|node| node.has_tag_name_any(name))?.text()?.to_owned())
    }
}
