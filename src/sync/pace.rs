//! Adapts the amount of work to what can be done in time. If a portion takes too long, the next one is a quarter of it;
//! if a portion succeeds, the next one is twice as large.

use std::sync::atomic::{AtomicU32, Ordering};

/// The size of the next portion. Cheap, and shared by all tasks that take portions of the same work.
#[derive(Debug)]
pub struct Pace {
    most: u32,
    next: AtomicU32,
}

impl Pace {
    /// Start with the largest portion.
    pub fn new(most: u32) -> Self {
        Self { most, next: AtomicU32::new(most) }
    }

    /// The size of the next portion; at least 1.
    pub fn portion(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    /// Record that a portion of this size took too long.
    pub fn slower(&self, portion: u32) {
        self.next.store((portion.min(self.most) / 4).max(1), Ordering::Relaxed);
    }

    /// Record that a portion was done in time.
    pub fn faster(&self) {
        let next = self.portion().saturating_mul(2).min(self.most);
        self.next.store(next, Ordering::Relaxed);
    }
}

/// The size of the parts into which a portion that took too long is divided. It is not halved: halves would take too
/// long as well.
pub(super) fn divided(portion: usize) -> usize {
    const FEW: usize = 16;
    if portion > FEW { FEW } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_taken_on_in_smaller_portions_until_it_goes_well_again() {
        let pace = Pace::new(512);
        let mut portions = vec![pace.portion()];
        for _ in 0..5 {
            pace.slower(pace.portion());
            portions.push(pace.portion());
        }
        assert_eq!(portions, [512, 128, 32, 8, 2, 1]);
        pace.slower(1);
        assert_eq!(pace.portion(), 1);
        for _ in 0..9 {
            pace.faster();
        }
        assert_eq!(pace.portion(), 512);
        pace.faster();
        assert_eq!(pace.portion(), 512);
        pace.slower(12);
        assert_eq!(pace.portion(), 3);
    }
}
