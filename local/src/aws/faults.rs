//! Faults of calls: scripted, or random from a seed.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::ApiError;

/// A fault of one call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is refused, without effect.
    Error(ApiError),
    /// It takes effect, but the answer is lost.
    Lost,
    /// It takes effect, but the answer is slow.
    Slow(Duration),
}

impl Fault {
    /// The service is called too often.
    pub fn throttled() -> Self {
        Self::Error(ApiError::new("ThrottlingException", "Rate exceeded"))
    }

    /// The service is called too often, in that service's own words.
    pub fn throttled_by(service: &str) -> Self {
        let (status, code) = match service {
            "autoscaling" | "sts" => (400, "Throttling"),
            "ec2" => (503, "RequestLimitExceeded"),
            "sqs" => (403, "RequestThrottled"),
            _ => (400, "ThrottlingException"),
        };
        Self::Error(ApiError { status, ..ApiError::new(code, "Rate exceeded") })
    }

    /// The service has an internal error.
    pub fn server() -> Self {
        Self::Error(ApiError {
            status: 500,
            ..ApiError::new("ServerException", "Service Unavailable. Please try again later.")
        })
    }

    /// The role denies it.
    pub fn denied() -> Self {
        Self::Error(ApiError::new("AccessDeniedException", "User is not authorized to perform this action"))
    }
}

/// The faults to come. A script takes precedence over a standing fault, and that over random ones.
#[derive(Debug, Default)]
pub struct Faults {
    scripted: HashMap<(String, String), VecDeque<Option<Fault>>>,
    always: HashMap<(String, String), Fault>,
    chance: Option<Chance>,
}

#[derive(Debug)]
struct Chance {
    random: StdRng,
    probability: f64,
    of: HashMap<(String, String), f64>,
}

impl Faults {
    /// The faults of the next calls of an action; `None` lets one pass.
    pub fn script(&mut self, service: &str, action: &str, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.scripted.entry((service.into(), action.into())).or_default().extend(faults);
    }

    /// The fault of all calls of an action, until it is removed with `None`.
    pub fn always(&mut self, service: &str, action: &str, fault: Option<Fault>) {
        let key = (service.to_owned(), action.to_owned());
        match fault {
            Some(fault) => self.always.insert(key, fault),
            None => self.always.remove(&key),
        };
    }

    /// Every call fails with this probability (0 to 1): throttled, refused, lost or slow. One seed gives one sequence.
    pub fn by_chance(&mut self, seed: u64, probability: f64) {
        let random = StdRng::seed_from_u64(seed);
        self.chance = Some(Chance { random, probability, of: HashMap::new() });
    }

    /// Calls of one action fail with a probability of their own, if random faults are on.
    pub fn by_chance_of(&mut self, service: &str, action: &str, probability: f64) {
        if let Some(chance) = &mut self.chance {
            chance.of.insert((service.into(), action.into()), probability);
        }
    }

    /// Ends random faults.
    pub fn calm(&mut self) {
        self.chance = None;
    }

    /// The fault of this call, if any.
    pub(super) fn next(&mut self, service: &str, action: &str) -> Option<Fault> {
        let key = (service.to_owned(), action.to_owned());
        if let Some(fault) = self.scripted.get_mut(&key).and_then(VecDeque::pop_front) {
            return fault;
        }
        if let Some(fault) = self.always.get(&key) {
            return Some(fault.clone());
        }
        let Chance { random, probability, of } = self.chance.as_mut()?;
        let probability = of.get(&key).unwrap_or(probability).clamp(0.0, 1.0);
        if !random.random_bool(probability) {
            return None;
        }
        Some(match random.random_range(0..4) {
            0 => Fault::throttled_by(service),
            1 => Fault::server(),
            2 => Fault::Lost,
            _ => Fault::Slow(Duration::from_millis(random.random_range(100..8000))),
        })
    }
}
