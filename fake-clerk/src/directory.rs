//! All users, and the orders in which they are listed.
//!
//! Small on purpose: a user is a seed of 24 bytes and a place in two indexes, so that a million fit.

use std::{
    collections::{BTreeSet, HashSet},
    iter,
    ops::RangeInclusive,
    vec,
};

use super::{
    id::{gathered, hash, number_in},
    query::{Filter, Order, OrderKey, UserQuery},
    user::{MAX_NUMBER, Seed, User, spread},
};

const DAY: u64 = 86_400_000;

/// The age of the first users.
const TWO_YEARS: u64 = 730 * DAY;

/// A time in Unix milliseconds, and a number that orders users with the same time.
type Place = (i64, u64);

pub(super) struct Directory {
    /// All users that ever existed; the first has number 1.
    seeds: Vec<Seed>,
    deleted: HashSet<u32>,
    by_creation: BTreeSet<Place>,
    by_update: BTreeSet<Place>,
}

impl Directory {
    /// Users with the numbers 1 to `count`, who signed up at a growing rate over the two years before `now`.
    pub(super) fn new(count: u32, now: i64) -> Self {
        let seeds: Vec<Seed> = (1..=count).map(|number| early_seed(number, count, now)).collect();
        Self {
            by_creation: seeds.iter().map(Seed::creation).collect(),
            by_update: seeds.iter().map(Seed::update).collect(),
            deleted: HashSet::new(),
            seeds,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_creation.len()
    }

    /// The user with this id.
    pub(super) fn get(&self, id: &str) -> Option<Seed> {
        self.living(self.remembered(id)?.number)
    }

    /// The user with this id, deleted or not.
    pub(super) fn remembered(&self, id: &str) -> Option<Seed> {
        self.seed(number_in("user_", id)?).filter(|seed| seed.id() == id)
    }

    fn seed(&self, number: u32) -> Option<Seed> {
        self.seeds.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
    }

    /// All users in order of creation.
    pub(super) fn all(&self) -> impl Iterator<Item = Seed> {
        self.in_order(self.by_creation.iter())
    }

    /// `None` if the numbers have run out.
    pub(super) fn create(&mut self, now: i64) -> Option<Seed> {
        let number = u32::try_from(self.seeds.len() + 1).ok().filter(|n| *n <= MAX_NUMBER)?;
        let seed = Seed::new(number, now);
        self.seeds.push(seed);
        self.by_creation.insert(seed.creation());
        self.by_update.insert(seed.update());
        Some(seed)
    }

    /// A new version, always with a later time than the previous one, whatever the clock says.
    pub(super) fn update(&mut self, id: &str, now: i64) -> Option<Seed> {
        let old = self.get(id)?;
        let new = Seed { version: old.version + 1, updated_at: now.max(old.updated_at + 1), ..old };
        self.seeds[usize::try_from(old.number - 1).ok()?] = new;
        self.by_update.remove(&old.update());
        self.by_update.insert(new.update());
        Some(new)
    }

    pub(super) fn delete(&mut self, id: &str) -> Option<Seed> {
        let seed = self.get(id)?;
        self.deleted.insert(seed.number);
        self.by_creation.remove(&seed.creation());
        self.by_update.remove(&seed.update());
        Some(seed)
    }

    pub(super) fn count(&self, filter: &Filter, admitted: impl Fn(&Seed) -> bool) -> usize {
        let order = Order { key: OrderKey::CreatedAt, descending: false };
        self.matching(filter, order, None).filter(|seed| admitted(seed)).count()
    }

    /// One page of the `admitted` users. It starts after the user `after`, who may be deleted.
    pub(super) fn page(
        &self,
        query: &UserQuery,
        after: Option<Seed>,
        admitted: impl Fn(&Seed) -> bool,
    ) -> Vec<Seed> {
        let matching = self.matching(&query.filter, query.page.order, after);
        query.page.of(matching.filter(|seed| admitted(seed)))
    }

    /// The users that the filter admits, in ascending order, starting behind `after` in this order. `after` works only with the
    /// order of creation.
    fn matching<'a>(
        &'a self,
        filter: &'a Filter,
        order: Order,
        after: Option<Seed>,
    ) -> Box<dyn DoubleEndedIterator<Item = Seed> + 'a> {
        let places = places(filter, order, after);
        if places.is_empty() {
            return Box::new(iter::empty());
        }
        let named = filter.numbers(|id| self.get(id).map(|seed| seed.number));
        let ascending: Box<dyn DoubleEndedIterator<Item = Seed> + 'a> = match (named, order.key) {
            (Some(numbers), key) => Box::new(sorted(numbers.into_iter().filter_map(|n| self.living(n)), key)),
            (None, OrderKey::CreatedAt) => Box::new(self.in_order(self.by_creation.range(places.clone()))),
            (None, OrderKey::UpdatedAt) => Box::new(self.in_order(self.by_update.iter())),
            (None, key) => Box::new(sorted(self.all(), key)),
        };
        Box::new(ascending.filter(move |seed| places.contains(&seed.creation()) && filter.admits(seed)))
    }

    fn in_order<'a>(
        &'a self,
        places: impl DoubleEndedIterator<Item = &'a Place> + 'a,
    ) -> impl DoubleEndedIterator<Item = Seed> + 'a {
        places.filter_map(|(_, scattered)| self.seed(gathered(*scattered)?))
    }

    pub(super) fn living(&self, number: u32) -> Option<Seed> {
        self.seed(number).filter(|seed| !self.deleted.contains(&seed.number))
    }
}

/// The range of possible users in the order of creation. An empty range would make the index panic.
fn places(filter: &Filter, order: Order, after: Option<Seed>) -> RangeInclusive<Place> {
    let (from, to) = filter.created_at.clone().map_or((i64::MIN, i64::MAX), RangeInclusive::into_inner);
    let (mut first, mut last) = ((from, u64::MIN), (to, u64::MAX));
    if let Some(after) = after {
        let (at, scattered) = after.creation();
        if order.descending {
            // No number is scattered to 0, because only the number 0 would be.
            last = last.min((at, scattered - 1));
        } else {
            first = first.max((at, scattered + 1));
        }
    }
    first..=last
}

/// Users without a value come first; users with equal values are ordered by id.
fn sorted(seeds: impl Iterator<Item = Seed>, key: OrderKey) -> vec::IntoIter<Seed> {
    let mut seeds: Vec<Seed> = seeds.collect();
    seeds.sort_by_cached_key(|seed| {
        let (text, time) = match key {
            OrderKey::CreatedAt => (None, Some(seed.created_at)),
            OrderKey::UpdatedAt => (None, Some(seed.updated_at)),
            OrderKey::LastActiveAt => (None, seed.last_active_at()),
            OrderKey::LastSignInAt => (None, seed.last_sign_in_at()),
            text => (text.text(User::from(seed)), None),
        };
        (text, time, seed.creation().1)
    });
    seeds.into_iter()
}

/// A user that exists when the fake starts. A few have been updated since their sign-up.
fn early_seed(number: u32, count: u32, now: i64) -> Seed {
    let seed = Seed::new(number, early_time(number, count, now));
    if hash(u64::from(number), 21) % 10 < 7 {
        return seed;
    }
    let version = 2 + number % 4;
    let updated_at = spread(hash(u64::from(number), 22), seed.updated_at + 1, now);
    Seed { version, updated_at, ..seed }
}

/// When the user with this number, out of `count`, signed up before the fake started. Sign-ups become more frequent over the two
/// years before `now`. Some share a millisecond, and the order of numbers differs slightly from the order of creation.
pub(super) fn early_time(number: u32, count: u32, now: i64) -> i64 {
    let leader = if number >= 16 && number % 16 < 3 { number - number % 16 } else { number };
    // The root of the share, with 20 binary places.
    let share = ((u64::from(leader) << 40) / u64::from(count)).isqrt();
    let since_start = (TWO_YEARS * share) >> 20;
    let before_now = TWO_YEARS - since_start + 1000 + hash(u64::from(leader), 20) % DAY;
    now - before_now.cast_signed()
}
