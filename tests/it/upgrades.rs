//! A rolling upgrade from an earlier version under load: nothing that was acknowledged is lost, and nothing is applied twice.
//!
//! `TEST_OLD_PROGRAM` names the program of that version, such as a build of the commit that was released as 0.1.0. Without it the
//! test is skipped.

use std::{env, time::Duration};

use crate::{
    outages::{under_load, wait_for_work},
    service::{Host, Keeper, alone, load, skip},
};

#[test]
fn a_rolling_upgrade_under_load_loses_nothing() {
    let Some(old) = env::var_os("TEST_OLD_PROGRAM") else {
        return skip("old-program", "TEST_OLD_PROGRAM does not name one");
    };
    let _alone = alone();
    for _ in 0..load(1, 20) {
        let Some(host) = Host::with(Keeper::Postgres) else { return };
        under_load(&host, host.serve_by(&old), |address, mut before| {
            wait_for_work(&host, 100);
            // The new version migrates while the old one works.
            let after = host.serve();
            wait_for_work(&host, 100);
            *address.lock().expect("not poisoned") = Some(after.public);
            before.terminate();
            assert_eq!(before.wait(Duration::from_secs(20)).code(), Some(0), "{}", before.log());
            wait_for_work(&host, 100);
            after.stop();
        });
    }
}
