use std::process::ExitCode;

/// Many small allocations a second, freed on other threads: what mimalloc is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    clerk_sync::cli::main()
}
