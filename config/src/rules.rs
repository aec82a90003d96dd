//! Rules for names and other texts.

/// 1 to `most` ASCII letters, digits and these other characters.
pub fn is_word(text: &str, most: usize, others: &str) -> bool {
    (1..=most).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

pub(crate) const NAME: &str = "must be 1 to 64 of A-Z a-z 0-9 _ -";

pub(crate) fn is_name(text: &str) -> bool {
    is_word(text, 64, "_-")
}

pub(crate) fn is_filled(text: &str) -> bool {
    !text.trim().is_empty()
}

/// API_Tag: letters, digits, spaces and a few signs.
pub(crate) fn is_tag_text(text: &str, most: usize) -> bool {
    text.chars().count() <= most && text.chars().all(|c| c.is_alphanumeric() || " +-=._:/@".contains(c))
}

/// Whether the text can be a label: in the node's list of labels, which Jenkins splits with `QuotedStringTokenizer`
/// (`Label.parse`), and quoted in an expression.
pub(crate) fn is_label(text: &str) -> bool {
    is_filled(text) && text.trim() == text && !text.chars().any(|c| c.is_control() || "\"'\\".contains(c))
}

/// The prefixes of the regions of each partition: `regionRegex` in the SDKs' partitions.
const PARTITIONS: [&str; 16] = [
    "us", "eu", "ap", "sa", "ca", "me", "af", "il", "mx", "cn", "us-gov", "us-iso", "us-isob", "us-isof", "eu-isoe",
    "eusc-de",
];

pub(crate) fn is_region(text: &str) -> bool {
    let (words, number) = text.rsplit_once('-').unwrap_or_default();
    let (partition, place) = words.rsplit_once('-').unwrap_or_default();
    PARTITIONS.contains(&partition)
        && !place.is_empty()
        && place.bytes().all(|byte| byte.is_ascii_lowercase())
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// The name of a cluster that is given as a name or as an ARN.
pub(crate) fn cluster_name(cluster: &str) -> &str {
    match cluster.split_once(":cluster/") {
        Some((arn, name)) if arn.starts_with("arn:") => name,
        _ => cluster,
    }
}

pub(crate) fn is_role_arn(text: &str) -> bool {
    text.starts_with("arn:") && text.split_once(":role/").is_some_and(|(_, name)| is_filled(name))
}

pub(crate) fn is_event_bus(text: &str) -> bool {
    is_word(text.rsplit_once(":event-bus/").map_or(text, |(_, name)| name), 256, "/._-")
}

/// An SSH public key of a type that Jenkins' SSH client supports: the type, and the same type with the key's numbers in
/// base64 (RFC 4253, section 6.6). A comment may follow.
pub(crate) fn is_public_key(text: &str) -> bool {
    let mut words = text.split(' ');
    let (Some(kind), Some(encoded)) = (words.next(), words.next()) else { return false };
    let numbers = match kind {
        "ssh-ed25519" => 1,
        "ssh-rsa" | "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" | "ecdsa-sha2-nistp521" => 2,
        "ssh-dss" => 4,
        _ => return false,
    };
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded).unwrap_or_default();
    let mut fields = Vec::new();
    let mut rest = decoded.as_slice();
    while let Some((length, more)) = rest.split_first_chunk() {
        let Some((field, more)) = more.split_at_checked(u32::from_be_bytes(*length) as usize) else { return false };
        fields.push(field);
        rest = more;
    }
    let is_one_line = !text.contains(char::is_control);
    is_one_line && rest.is_empty() && fields.len() == 1 + numbers && fields[0] == kind.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_one_of_a_partition() {
        for region in [
            "eu-west-1",
            "us-gov-west-1",
            "us-iso-east-1",
            "us-isob-east-1",
            "eu-isoe-west-1",
            "us-isof-south-1",
            "eusc-de-east-1",
            "ap-southeast-5",
            "cn-northwest-1",
            "mx-central-1",
            "il-central-1",
        ] {
            assert!(is_region(region), "{region}");
        }
        for region in [
            "",
            "eu",
            "eu-west",
            "eu-1",
            "EU-west-1",
            "eu--west-1",
            "eu-west-1a",
            "eu-west-",
            "xx-west-1",
            "eu-west-west-1",
            "mars-north-1",
            "eusc-east-1",
            "us-isox-east-1",
        ] {
            assert!(!is_region(region), "{region}");
        }
    }

    #[test]
    fn a_host_key_is_an_ssh_public_key() {
        const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
        let ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg=";
        for key in [KEY, &format!("{KEY} root@agent"), ecdsa] {
            assert!(is_public_key(key), "{key}");
        }
        let swapped = KEY.replace("ssh-ed25519", "ssh-rsa");
        for key in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 ",
            "ssh-ed25519 AAAA",
            "SHA256:abcdef",
            &KEY[..60],
            &swapped,
            &KEY[12..],
            &format!("{KEY}\nmore"),
            "-----BEGIN OPENSSH PRIVATE KEY-----",
        ] {
            assert!(!is_public_key(key), "{key}");
        }
    }
}
