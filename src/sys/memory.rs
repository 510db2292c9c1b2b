//! How the kernel backs our memory.

/// Keeps the kernel from backing our memory with huge pages. mimalloc asks for them where the
/// system allows asking; each of its per-thread areas then takes 2 MiB for the first octet, which
/// for this program means 16 MB resident before the first request instead of 5, and memory that
/// does not shrink after a burst. A kernel that does not know the flag has none to refuse.
pub fn refuse_huge_pages() {
    // SAFETY: this call takes plain numbers and changes nothing but a flag of this process.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}
