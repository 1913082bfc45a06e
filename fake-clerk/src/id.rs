//! Ids that look like Clerk's but contain the number of their owner, so that the fake need not store them.

/// In the order of their values, which is also their byte order.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The factor that scatters numbers over 64 bits; odd, so that it can be inverted.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
const GATHER: u64 = inverse(SCATTER);

/// The length of an id without its prefix.
const LENGTH: usize = 27;

/// The position of the scattered user number in an id.
const NUMBER: std::ops::Range<usize> = 7..18;

/// An id of an object that belongs to this user, such as `user_21qPJ1h7KfLkXV6PGC2l0aHm4Tg`. Ids of one kind sort by the whole
/// second in which their users were created, and then by [`scattered`] numbers.
///
/// `which` distinguishes objects of one kind and one user.
pub(super) fn id(prefix: &str, created_at: i64, number: u32, which: u64) -> String {
    let mut id = String::with_capacity(prefix.len() + LENGTH);
    id.push_str(prefix);
    id.push('2');
    push(&mut id, 6, created_at.div_euclid(1000).cast_unsigned());
    push(&mut id, NUMBER.len(), scattered(number));
    push(&mut id, 9, hash(u64::from(number), which));
    id
}

/// The number in an id of this kind. The id may still not be the id of that user.
pub(super) fn number_in(prefix: &str, id: &str) -> Option<u32> {
    let id = id.strip_prefix(prefix).filter(|id| id.len() == LENGTH)?;
    gathered(value(id.get(NUMBER)?)?)
}

/// Map every number to a different, random-looking number.
pub(super) fn scattered(number: u32) -> u64 {
    u64::from(number).wrapping_mul(SCATTER)
}

/// The number that was [`scattered`].
pub(super) fn gathered(scattered: u64) -> Option<u32> {
    u32::try_from(scattered.wrapping_mul(GATHER)).ok()
}

/// The same input always gives the same bits (splitmix64).
pub(super) fn hash(number: u64, salt: u64) -> u64 {
    let mut bits = (number ^ salt.rotate_left(32)).wrapping_add(1).wrapping_mul(SCATTER);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Append the last digits of a value.
fn push(id: &mut String, digits: usize, mut value: u64) {
    let start = id.len();
    for _ in 0..digits {
        let digit = usize::try_from(value % 62).unwrap_or_default();
        id.insert(start, char::from(DIGITS[digit]));
        value /= 62;
    }
}

fn value(digits: &str) -> Option<u64> {
    digits.bytes().try_fold(0_u64, |value, digit| {
        let digit = DIGITS.binary_search(&digit).ok()?;
        value.checked_mul(62)?.checked_add(u64::try_from(digit).ok()?)
    })
}

/// The inverse of multiplication by an odd number; each round doubles the number of correct bits (Newton).
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut rounds = 0;
    while rounds < 5 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        rounds += 1;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_whose_it_is() {
        for number in [1, 2, 61, 62, 9_999_999] {
            let id = id("user_", 1_767_225_600_123, number, 0);
            assert_eq!(id.len(), "user_29w83sxmDNGwOuEthce5gg56FcC".len());
            assert_eq!(number_in("user_", &id), Some(number));
        }
        assert_eq!(number_in("user_", "user_1"), None);
        assert_eq!(number_in("user_", &id("idn_", 0, 1, 0)), None);
        assert_eq!(number_in("user_", "user_zzzzzzzzzzzzzzzzzzzzzzzzzzz"), None);
    }

    #[test]
    fn ids_are_in_the_order_of_creation() {
        let mut users: Vec<(i64, u32)> =
            (1..500).map(|number| (i64::from(number % 50) * 1000, number)).collect();
        users.sort_by_key(|(created_at, number)| (*created_at, scattered(*number)));
        let ids: Vec<String> = users.iter().map(|(at, number)| id("user_", *at, *number, 0)).collect();
        assert!(ids.is_sorted());
    }
}
