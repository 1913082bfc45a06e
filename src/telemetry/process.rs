//! Resource usage of the process, under the names that Prometheus' own clients use.
//!
//! Values that the system does not report are left out.

use std::fs;

use metrics::{counter, gauge};
use rustix::time::{ClockId, clock_gettime};

use super::{PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_MEMORY, PROCESS_OPEN_FDS, number};

/// Read the current values.
pub(super) fn look() {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    counter!(PROCESS_CPU).absolute(cpu.tv_sec.try_into().unwrap_or_default());
    if let Some(memory) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident) {
        gauge!(PROCESS_MEMORY).set(number(memory));
    }
    if let Ok(open) = fs::read_dir("/dev/fd") {
        // One of them is the directory being read.
        gauge!(PROCESS_OPEN_FDS).set(number(open.count().saturating_sub(1) as u64));
    }
    if let Ok(most) = rlimit::Resource::NOFILE.get_soft() {
        gauge!(PROCESS_MAX_FDS).set(number(most));
    }
}

/// The resident memory in bytes, from Linux's `status`.
fn resident(status: &str) -> Option<u64> {
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"))?;
    kibibytes.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        let status = "Name:\tclerk-sync\nVmPeak:\t  9000 kB\nVmRSS:\t    2048 kB\nThreads:\t3\n";
        assert_eq!(resident(status), Some(2_097_152));
        assert_eq!(resident("Name:\tclerk-sync\n"), None);
    }

    #[test]
    fn what_the_process_takes_up_is_shown() {
        let recorder = super::super::recorder().build_recorder();
        metrics::with_local_recorder(&recorder, look);
        let page = recorder.handle().render();
        assert!(
            page.contains("\nprocess_open_fds ") && page.contains("\nprocess_cpu_seconds_total "),
            "{page}"
        );
    }
}
