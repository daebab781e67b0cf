//! How the allocator hands memory back.

/// Heaps of the allocator, among which threads are spread.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

/// From here on, memory of at least 128 KiB goes back to the system as soon as it is free. Left alone, glibc keeps more and
/// more of what was freed, in each thread's own heap: an agent that has sealed one tree of very many files would stay as
/// large as that made it, and grow with the next one. To be called before there are threads.
///
/// Of such heaps there are few: what a burst of requests leaves in each adds up.
pub fn return_large_allocations() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers; a value that it refuses changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}
