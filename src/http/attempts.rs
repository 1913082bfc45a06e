//! Slows down guessing: failures are counted per address, and forgotten one by one.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::address;

/// The time until one failure is forgotten.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(6);

/// The maximum number of remembered addresses. Those without remaining failures are dropped first.
const ADDRESSES: usize = 10_000;

/// Failures by address.
#[derive(Debug)]
pub(super) struct Attempts {
    /// The number of failures before an address has to wait.
    free: u32,
    /// The time at which all failures of an address are forgotten.
    failures: Mutex<HashMap<IpAddr, Instant>>,
}

impl Attempts {
    pub(super) fn new(free: u32) -> Self {
        Self { free, failures: Mutex::default() }
    }

    /// The time until this address has a free failure again, if it has none now.
    pub(super) fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let all_forgotten = self.with(|failures| failures.get(&account(failures, address)).copied())?;
        let too_far = now + FORGOTTEN * self.free.saturating_sub(1);
        let wait = all_forgotten.saturating_duration_since(too_far);
        (!wait.is_zero()).then_some(wait)
    }

    /// Count an attempt before it is checked; false if the address has no free failure left.
    pub(super) fn begin(&self, address: IpAddr, now: Instant) -> bool {
        let free = self.wait(address, now).is_none();
        if free {
            self.failed(address, now);
        }
        free
    }

    /// Forget the failures of an address after a successful attempt.
    pub(super) fn succeeded(&self, address: IpAddr) {
        self.with(|failures| failures.remove(&account(failures, address)));
    }

    /// Count a failed attempt.
    pub(super) fn failed(&self, address: IpAddr, now: Instant) {
        self.with(|failures| {
            if failures.len() >= ADDRESSES {
                failures.retain(|_, all_forgotten| *all_forgotten > now);
            }
            let all_forgotten = failures.entry(account(failures, address)).or_insert(now);
            // Capped, so that others at the same address never cause a long delay.
            let most = now + FORGOTTEN * (self.free + 1);
            *all_forgotten = ((*all_forgotten).max(now) + FORGOTTEN).min(most);
        });
    }

    fn with<T>(&self, what: impl FnOnce(&mut HashMap<IpAddr, Instant>) -> T) -> T {
        what(&mut self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The key under which failures of an address count. Above the maximum number of addresses, all new addresses share one key.
fn account(failures: &HashMap<IpAddr, Instant>, address: IpAddr) -> IpAddr {
    let account = address::account(address);
    let is_known = failures.len() < ADDRESSES || failures.contains_key(&account);
    if is_known { account } else { Ipv4Addr::UNSPECIFIED.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_failures_are_free_and_each_is_forgotten_after_a_while() {
        let attempts = Attempts::new(3);
        let now = Instant::now();
        let [guesser, other] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        for _ in 0..3 {
            assert_eq!(attempts.wait(guesser, now), None);
            attempts.failed(guesser, now);
        }
        assert_eq!(attempts.wait(guesser, now), Some(FORGOTTEN));
        assert_eq!(attempts.wait(other, now), None);
        let later = now + FORGOTTEN;
        assert_eq!(attempts.wait(guesser, later), None);
        attempts.failed(guesser, later);
        assert_eq!(attempts.wait(guesser, later), Some(FORGOTTEN));
    }

    #[test]
    fn whoever_has_many_addresses_has_no_more_tries() {
        let attempts = Attempts::new(1);
        let now = Instant::now();
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(attempts.begin(address("2001:db8::1"), now));
        assert!(!attempts.begin(address("2001:db8::2"), now));
        assert!(attempts.begin(address("::ffff:192.0.2.1"), now));
        assert!(!attempts.begin(address("192.0.2.1"), now));
        let strangers = (0..).map(|number: u32| IpAddr::from((0x0a00_0000 + number).to_be_bytes()));
        let let_in = strangers.take(2 * ADDRESSES).filter(|stranger| attempts.begin(*stranger, now)).count();
        assert_eq!(let_in, ADDRESSES - 2 + 1, "late addresses share one attempt");
    }
}
