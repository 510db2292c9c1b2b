//! How the kernel backs our memory.

/// Before anything allocates, `main` included: what a program's start touches would otherwise be
/// huge pages already, and stay. By this name, constructors run before those of the
/// allocator and of the standard library (101 and 99), as the linker sorts them.
#[used]
#[unsafe(link_section = ".init_array.00098")]
static AT_FIRST: extern "C" fn() = refuse_huge_pages;

/// Keeps the kernel from backing our memory with huge pages. mimalloc asks for them where the
/// system allows asking; each of its areas then takes 2 MiB for the first octet, which for this
/// program means 10 MB resident before the first request instead of 6, and memory that does not
/// shrink after a burst. A kernel that does not know the flag has none to refuse.
extern "C" fn refuse_huge_pages() {
    // The C function takes what it is given for `unsigned long`, and cannot know that it is less.
    const ON: libc::c_ulong = 1;
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: this call takes plain numbers, of the width that it reads, and changes nothing but a
    // flag of this process. It needs nothing that is set up later than a constructor runs.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, ON, UNUSED, UNUSED, UNUSED) };
}
