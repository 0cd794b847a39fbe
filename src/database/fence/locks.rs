//! POSIX locks on bytes of a file, and a timer that ends a wait for them.
//!
//! SQLite's own locks are of this kind, so these must be, too. A process has each byte once,
//! however many descriptors it has, and closing any of the descriptors drops all its locks on the
//! file. So a file is opened once, after SQLite opened it, and closed after SQLite closed it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Once;
use std::time::Duration;

use libc::{c_int, c_short, c_void};

pub(super) type Bytes = Range<libc::off_t>;

fn call(file: &File, command: c_int, kind: c_int, bytes: &Bytes) -> io::Result<libc::flock> {
    // SAFETY: a struct of integers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as c_short;
    lock.l_whence = libc::SEEK_SET as c_short;
    (lock.l_start, lock.l_len) = (bytes.start, bytes.end - bytes.start);
    // SAFETY: the descriptor is open, and the struct outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock),
    }
}

/// Takes the bytes if no other process has one of them.
pub(super) fn take(file: &File, bytes: &Bytes) -> bool {
    call(file, libc::F_SETLK, libc::F_WRLCK, bytes).is_ok()
}

/// Sleeps until the bytes are free, for no longer than `patience`, and takes them. Returns whether
/// it did.
pub(super) fn wait(file: &File, bytes: &Bytes, patience: Duration) -> bool {
    let Some(_alarm) = Alarm::start(patience, None) else {
        std::thread::sleep(patience.min(POLL));
        return take(file, bytes);
    };
    let taken = call(file, libc::F_SETLKW, libc::F_WRLCK, bytes);
    if let Err(e) = &taken
        && e.kind() != io::ErrorKind::Interrupted
    {
        std::thread::sleep(patience.min(POLL)); // EDEADLK: they wait for us, or so it seems
    }
    taken.is_ok()
}

/// Pause between two tries where sleeping on the lock does not work.
pub(super) const POLL: Duration = Duration::from_millis(1);

/// Releases the bytes, including the locks that SQLite has on them.
pub(super) fn release(file: &File, bytes: &Bytes) {
    let _ = call(file, libc::F_SETLK, libc::F_UNLCK, bytes);
}

/// Whether another process has one of the bytes, for reading or for writing.
pub(super) fn is_taken(file: &File, bytes: &Bytes) -> bool {
    call(file, libc::F_GETLK, libc::F_WRLCK, bytes)
        .is_ok_and(|lock| c_int::from(lock.l_type) != libc::F_UNLCK)
}

/// Whether another process has one of the bytes for reading.
pub(super) fn is_shared(file: &File, bytes: &Bytes) -> bool {
    call(file, libc::F_GETLK, libc::F_WRLCK, bytes)
        .is_ok_and(|lock| c_int::from(lock.l_type) == libc::F_RDLCK)
}

/// Whether another process has one of the bytes for writing.
pub(super) fn is_written(file: &File, bytes: &Bytes) -> bool {
    call(file, libc::F_GETLK, libc::F_RDLCK, bytes)
        .is_ok_and(|lock| c_int::from(lock.l_type) != libc::F_UNLCK)
}

/// Whether this process sees the locks of another process. It does not on some network file systems
/// and in some sandboxes. A child process locks `byte`, which nobody else uses, as a test.
pub(super) fn are_seen(file: &File, byte: &Bytes) -> bool {
    let (Ok((locked, tell_locked)), Ok((checked, tell_checked))) = (io::pipe(), io::pipe()) else {
        return false;
    };
    // SAFETY: the child makes system calls and nothing else, then ends without clean-up.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let locks = call(file, libc::F_SETLK, libc::F_RDLCK, byte).is_ok();
        if locks {
            drop(tell_locked);
            drop(tell_checked);
            read_end(&checked);
        }
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    drop((tell_locked, checked));
    if child < 0 {
        return false;
    }
    read_end(&locked);
    let is_seen = is_taken(file, byte);
    drop(tell_checked);
    // SAFETY: waits for our own child.
    unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
    is_seen
}

/// Waits until the other end is closed.
fn read_end(pipe: &io::PipeReader) {
    let mut byte = 0u8;
    loop {
        // SAFETY: the call writes one byte into a variable of one byte.
        let read = unsafe { libc::read(pipe.as_raw_fd(), (&raw mut byte).cast(), 1) };
        if read == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// A timer of this thread. Its signal interrupts the system call under way, again and again; with a
/// file, its signal comes once and also releases the readers' bytes. It stops when it is dropped.
pub(super) struct Alarm(libc::timer_t);

/// A signal that is ignored by default. Go's runtime uses it in the same way.
const SIGNAL: c_int = libc::SIGURG;

/// Nanoseconds between two signals. A signal that comes before the system call begins interrupts
/// nothing, so one would not be enough.
const AGAIN: libc::c_long = 1_000_000;

impl Alarm {
    /// Returns `None` if the system has no timer left.
    pub(super) fn start(after: Duration, lets_go: Option<&File>) -> Option<Alarm> {
        listen();
        let fd = lets_go.map_or(-1, |file| file.as_raw_fd() as isize);
        // SAFETY: all zeros are valid for these structs of integers and pointers; the timer's id is
        // written before it is used.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = SIGNAL;
            event.sigev_value.sival_ptr = fd as *mut c_void;
            event.sigev_notify_thread_id = libc::syscall(libc::SYS_gettid) as c_int;
            let mut timer: libc::timer_t = std::mem::zeroed();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
                return None;
            }
            let alarm = Alarm(timer);
            let mut time: libc::itimerspec = std::mem::zeroed();
            time.it_value.tv_sec = after.as_secs() as _; // its type differs between libcs
            time.it_value.tv_nsec = after.subsec_nanos().max(1) as libc::c_long;
            time.it_interval.tv_nsec = if lets_go.is_some() { 0 } else { AGAIN };
            let set = libc::timer_settime(timer, 0, &time, ptr::null_mut());
            (set == 0).then_some(alarm)
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer was created, and is deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Installs the handler, once per process, and unblocks the signal in this thread: it may have been
/// blocked when the process was started.
fn listen() {
    static ONCE: Once = Once::new();
    // SAFETY: the handler makes one system call, which is allowed in a handler.
    unsafe {
        ONCE.call_once(|| {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_alarm;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO; // and not SA_RESTART
            libc::sigaction(SIGNAL, &action, ptr::null_mut());
        });
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, SIGNAL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
    }
}

extern "C" fn on_alarm(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes valid pointers, and the handler restores `errno` for the
    // interrupted code.
    unsafe {
        if (*info).si_code != libc::SI_TIMER {
            return;
        }
        let fd = (*info).si_value().sival_ptr as isize as c_int;
        if fd < 0 {
            return;
        }
        let errno = *libc::__errno_location();
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = libc::F_UNLCK as c_short;
        lock.l_whence = libc::SEEK_SET as c_short;
        let all = super::READERS;
        (lock.l_start, lock.l_len) = (all.start, all.end - all.start);
        libc::fcntl(fd, libc::F_SETLK, &lock);
        *libc::__errno_location() = errno;
    }
}
