//! How the kernel backs our memory.

/// Keeps the kernel from backing our memory with huge pages. mimalloc asks for them where the
/// system allows asking; each of its per-thread areas then takes 2 MiB for the first octet, which
/// for this program means 16 MB resident before the first request instead of 5, and memory that
/// does not shrink after a burst. A kernel that does not know the flag has none to refuse.
pub fn refuse_huge_pages() {
    // The C function takes what it is given for `unsigned long`, and cannot know that it is less.
    const ON: libc::c_ulong = 1;
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: this call takes plain numbers, of the width that it reads, and changes nothing but a
    // flag of this process.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, ON, UNUSED, UNUSED, UNUSED) };
}
