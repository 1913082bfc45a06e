//! For any headers, a request is accepted if and only if the signature header contains the right MAC.
#![no_main]

use bytes::Bytes;
use chrono::DateTime;
use clerk_sync::{
    clerk::signature::{Rejection, Secret, SignatureHeaders, Verifier},
    model::SvixId,
};
use libfuzzer_sys::fuzz_target;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NOW: i64 = 1_614_265_330;
const TOLERANCE: u32 = 300;

/// The number of entries that the verifier checks.
const MAX_ENTRIES: usize = 32;

fuzz_target!(|input: (&[u8], &[u8], &[u8], &[u8], u8)| {
    let (id, timestamp, signature, body, place) = input;
    let secret = Secret::parse(SECRET).expect("a secret");
    let verifier = Verifier::new(vec![secret.clone()], TOLERANCE);
    let now = DateTime::from_timestamp(NOW, 0).expect("in range");
    let verify = |id: &[u8], timestamp: &[u8], signature: &[u8]| {
        let headers = SignatureHeaders { id, timestamp, signature };
        verifier.expect(&headers, now)?.verify(Bytes::copy_from_slice(body))
    };

    // The fuzzer's input alone: a sender that does not know the secret is refused.
    match verify(id, timestamp, signature) {
        Ok(verified) => {
            // The fuzzer cannot compute a MAC. If it guesses one, it must be the right one.
            let expected = secret.sign(verified.svix_id().as_str(), verified.attempted_at(), body);
            assert!(entries(signature).any(|entry| entry == expected.as_bytes()));
            assert_eq!(verified.svix_id().as_str().as_bytes(), id);
            assert_eq!(&verified.body()[..], body);
        }
        Err(rejection) => assert!(Rejection::ALL.contains(&rejection)),
    }

    // The right MAC among other entries is accepted at any position.
    let right = secret.sign("msg_1", now, body);
    let seconds = NOW.to_string();
    let mut header = Vec::new();
    let others: Vec<&[u8]> = entries(signature).take(MAX_ENTRIES - 1).collect();
    let place = usize::from(place) % (others.len() + 1);
    for (at, other) in others.iter().enumerate() {
        if at == place {
            header.extend_from_slice(right.as_bytes());
            header.push(b' ');
        }
        header.extend_from_slice(other);
        header.push(b' ');
    }
    if place == others.len() {
        header.extend_from_slice(right.as_bytes());
    }
    let verified = verify(b"msg_1", seconds.as_bytes(), &header).expect("the header contains the right MAC");
    assert_eq!(&verified.body()[..], body);

    // The right MAC is wrong for another id, another time or another body.
    if id != b"msg_1" {
        let rejection = verify(id, seconds.as_bytes(), &header).expect_err("signed for another id");
        let valid = str::from_utf8(id).ok().and_then(SvixId::new).is_some();
        assert_eq!(rejection, if valid { Rejection::InvalidSignature } else { Rejection::MissingHeaders });
    }
    if timestamp != seconds.as_bytes() {
        verify(b"msg_1", timestamp, &header).expect_err("signed at another time");
    }
    let headers = SignatureHeaders { id: b"msg_1", timestamp: seconds.as_bytes(), signature: &header };
    let longer = Bytes::from([body, b" "].concat());
    assert_eq!(
        verifier
            .expect(&headers, now)
            .and_then(|expected| expected.verify(longer))
            .expect_err("another body"),
        Rejection::InvalidSignature
    );
});

fn entries(signature: &[u8]) -> impl Iterator<Item = &[u8]> {
    signature.split(|byte| *byte == b' ')
}
