//! Counts earlier attempts of a delivery.
//!
//! Svix does not number its attempts, so they are counted here by the svix-id. Only genuine webhooks that this process
//! received and still remembers are counted. Traces record the count; it decides nothing.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, PoisonError},
};

/// Ids per generation; two generations are remembered.
const GENERATION: usize = 8192;

/// The number of attempts of each delivery.
#[derive(Debug, Default)]
pub struct Resends(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<String, u32>,
    old: HashMap<String, u32>,
}

impl Resends {
    /// Count an attempt; returns the number of earlier ones.
    pub(super) fn count(&self, svix_id: &str) -> u32 {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.young.len() >= GENERATION {
            generations.old = mem::take(&mut generations.young);
        }
        let before = generations.old.remove(svix_id).unwrap_or_default();
        let came = generations.young.entry(svix_id.to_owned()).or_insert(before);
        *came = came.saturating_add(1);
        *came - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_are_counted_each_by_its_id() {
        let resends = Resends::default();
        let counted: Vec<u32> = ["msg_1", "msg_2", "msg_1", "msg_1"].map(|id| resends.count(id)).to_vec();
        assert_eq!(counted, [0, 0, 1, 2]);
    }

    #[test]
    fn only_so_many_are_remembered_and_the_latest_for_longest() {
        let resends = Resends::default();
        for number in 0..3 * GENERATION {
            assert_eq!(resends.count(&format!("msg_{number}")), 0);
            assert_eq!(resends.count("msg_often"), u32::try_from(number).expect("small"));
        }
        assert_eq!(resends.count("msg_0"), 0, "forgotten");
        let generations = resends.0.lock().expect("not poisoned");
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
    }
}
