//! How the kernel backs our memory, and when it gets it back.

/// Settles both before anything allocates, `main` included: what a program's start touches would
/// otherwise be huge pages already, and stay. By its name the linker puts this in front of the
/// standard library's constructor, which has 99, and of the allocator's.
#[used]
#[unsafe(link_section = ".init_array.00098")]
static AT_FIRST: extern "C" fn() = at_first;

extern "C" fn at_first() {
    refuse_huge_pages();
    give_back_at_once();
}

/// Keeps the kernel from backing our memory with huge pages. mimalloc asks for them where the
/// system allows asking; each of its areas then takes 2 MiB for the first octet, which for this
/// program means 10 MB resident before the first request instead of 6, and memory that does not
/// shrink after a burst. A kernel that does not know the flag has none to refuse.
fn refuse_huge_pages() {
    // The C function takes what it is given for `unsigned long`, and cannot know that it is less.
    const ON: libc::c_ulong = 1;
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: this call takes plain numbers, of the width that it reads, and changes nothing but a
    // flag of this process. It needs nothing that is set up later than a constructor runs.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, ON, UNUSED, UNUSED, UNUSED) };
}

/// Has mimalloc return a page as its last block is freed. By default it does so a second later,
/// but only if somebody allocates then: after a burst nobody does, and 1,000 streams that opened
/// together kept 4 MB of buffers that nobody had a use for. What goes round on the path of a
/// request is never freed, so this costs nothing there.
///
/// By the environment, which mimalloc documents for it, because its options have no other stable
/// names; who has set the variable already is heeded.
fn give_back_at_once() {
    const KEEP_WHAT_IS_SET: libc::c_int = 0;
    // SAFETY: both strings end in NUL and are static. Before `main` there is one thread, so nobody
    // reads the environment meanwhile.
    unsafe { libc::setenv(c"MIMALLOC_PURGE_DELAY".as_ptr(), c"0".as_ptr(), KEEP_WHAT_IS_SET) };
}
