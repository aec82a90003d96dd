//! Classifies the failures in an answer of RunTask (ECS developer guide, "Amazon ECS API failure reasons").

/// What a placement failure means for the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The instance has too little CPU or memory left, or too few GPUs.
    Size,
    /// The instance's tasks have used up something that each task takes: a port or a network interface.
    Slots,
    /// The instance cannot take the task now, whatever it has left: its container agent is disconnected, or it already
    /// has a task of the same kind. Or there is no instance.
    Unavailable,
    /// Fargate or a capacity provider has no capacity left, or a quota is used up.
    NoCapacity,
    /// The instance lacks what the task or its template requires. Another instance may have it.
    Unsuitable,
    /// No instance can ever run the task.
    Never,
    /// Unknown; RunTask is repeated.
    Unknown,
}

/// About a quota of tasks, in an error's message or a failure's reason: "You've reached the limit on the number of
/// tasks you can run concurrently".
pub(super) const LIMIT_REACHED: &str = "reached the limit on the number of";

/// In an error's message or a failure's reason: "No Container Instances were found in your cluster."
pub(super) const NO_INSTANCES: &str = "no container instances";

/// Classifies the reason of one failure, or the message of an error that means the same.
pub fn classify_placement(reason: &str) -> Placement {
    let upper = reason.to_ascii_uppercase();
    let lower = reason.to_ascii_lowercase();
    let begins = |words: &[&str]| words.iter().any(|word| upper.starts_with(word));
    match reason {
        "RESOURCE:CPU" | "RESOURCE:MEMORY" | "RESOURCE:GPU" => Placement::Size,
        _ if begins(&["RESOURCE"]) => Placement::Slots,
        _ if begins(&["AGENT", "DISTINCTINSTANCE", "EMPTY CAPACITY PROVIDER"]) || lower.contains(NO_INSTANCES) => {
            Placement::Unavailable
        }
        _ if lower.contains("capacity") || lower.contains(LIMIT_REACHED) => Placement::NoCapacity,
        _ if begins(&["ATTRIBUTE", "MEMBEROF", "LOCATION"]) => Placement::Unsuitable,
        _ if begins(&["MISSING", "INACTIVE", "BLOCKED", "INVALID", "UNSUPPORTED"]) => Placement::Never,
        // An unlisted reason may pass, as an internal error does.
        _ => Placement::Unknown,
    }
}
