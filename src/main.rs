use std::process::ExitCode;

/// The program makes many small allocations and frees them on other threads, which suits mimalloc.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    clerk_sync::cli::main()
}
