//! Confines the process it is called in, so that a flaw in the interpreter's engine would still reach nothing.
//!
//! Called once by a worker process, after it has loaded everything. Resource limits and "no new privileges" always;
//! Landlock (no file system) and a seccomp filter (a list of allowed system calls) where the kernel has them. What is
//! in force is reported, never guessed. Linux on x86-64 and aarch64; elsewhere nothing is confined and that is said.

/// What holds in a worker process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// No core files, no new files, no more processes' worth of descriptors, no new privileges.
    pub has_limits: bool,
    /// No file can be opened (Landlock).
    pub has_landlock: bool,
    /// Only listed system calls; any other is refused (seccomp).
    pub has_seccomp: bool,
}

/// Confines this process for good.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(crate) fn confine() -> Confinement {
    Confinement::default()
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) use linux::confine;

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod linux {
    use super::Confinement;

    /// Confines this process, its threads to come included, for good.
    pub(crate) fn confine() -> Confinement {
        let has_limits = limit_resources();
        Confinement { has_limits, has_landlock: has_limits && landlock(), has_seccomp: has_limits && seccomp() }
    }

    /// Descriptors that a worker may have open: its pipes, the interpreter's file, pagemap, and a few to spare.
    const MAX_FILES: libc::rlim_t = 32;

    fn limit_resources() -> bool {
        let set = |resource, value: libc::rlim_t| {
            let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
            // SAFETY: `limit` is a valid rlimit that outlives the call.
            unsafe { libc::setrlimit(resource, &limit) == 0 }
        };
        // SAFETY: PR_SET_NO_NEW_PRIVS takes four integers and touches no memory.
        let no_new_privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 };
        no_new_privileges
            && set(libc::RLIMIT_CORE, 0)
            && set(libc::RLIMIT_FSIZE, 0)
            && set(libc::RLIMIT_NOFILE, MAX_FILES)
    }

    /// `struct landlock_ruleset_attr` of linux/landlock.h, first version: the file system alone.
    #[repr(C)]
    struct RulesetAttr {
        handled_access_fs: u64,
    }

    /// Every right of the first version of Landlock: execute, read, write, list, remove and make of every kind.
    const ALL_ACCESS: u64 = (1 << 13) - 1;

    /// Denies every use of the file system that is not by an open descriptor.
    fn landlock() -> bool {
        let attr = RulesetAttr { handled_access_fs: ALL_ACCESS };
        // SAFETY: `attr` is a valid ruleset attribute of the size given and outlives the call.
        let ruleset =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &attr, size_of::<RulesetAttr>(), 0u32) };
        if ruleset < 0 {
            return false;
        }
        // SAFETY: both calls take the descriptor that was just made and touch no memory.
        unsafe {
            let is_restricted = libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0u32) == 0;
            libc::close(ruleset as libc::c_int);
            is_restricted
        }
    }

    /// What the host side of a session and the Rust runtime below it use.
    const ALLOWED: &[libc::c_long] = &[
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_close,
        libc::SYS_fstat,
        libc::SYS_lseek,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_ioctl,
        libc::SYS_futex,
        libc::SYS_clone3,
        libc::SYS_clone,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_prctl,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
        libc::SYS_getrandom,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];

    #[cfg(target_arch = "x86_64")]
    const ARCHITECTURE: u32 = 0xc000_003e;
    #[cfg(target_arch = "aarch64")]
    const ARCHITECTURE: u32 = 0xc000_00b7;

    /// x32 calls carry this bit; they are other calls by the same numbers.
    #[cfg(target_arch = "x86_64")]
    const X32_BIT: u32 = 0x4000_0000;

    /// Offsets in `struct seccomp_data` of linux/seccomp.h.
    const OFFSET_NUMBER: u32 = 0;
    const OFFSET_ARCHITECTURE: u32 = 4;

    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    #[cfg(target_arch = "x86_64")]
    const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

    fn step(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }

    /// Refuses any call that is not listed, and ends the process at one of another architecture.
    fn seccomp() -> bool {
        let kill = step(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0);
        let refuse = step(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0);
        let mut filter = vec![
            step(LOAD, OFFSET_ARCHITECTURE, 0, 0),
            step(JUMP_EQUAL, ARCHITECTURE, 1, 0),
            kill,
            step(LOAD, OFFSET_NUMBER, 0, 0),
        ];
        #[cfg(target_arch = "x86_64")]
        filter.extend([step(JUMP_AT_LEAST, X32_BIT, 0, 1), kill]);
        for number in ALLOWED {
            filter.push(step(JUMP_EQUAL, *number as u32, 0, 1));
            filter.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
        }
        filter.push(refuse);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        const TSYNC: libc::c_ulong = 1;
        // SAFETY: `program` describes `filter`, which outlives the call; the kernel copies it.
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, TSYNC, &program) == 0 }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// In a child process: confines it, then tries what must fail and what must work. The exit status counts
        /// what went otherwise.
        #[test]
        fn a_confined_process_reaches_nothing() {
            // SAFETY: the child makes system calls, allocates (glibc's allocator survives a fork) and leaves by _exit;
            // it never returns into the test harness.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let confinement = confine();
                // SAFETY: the paths are literals; the descriptors are not used.
                let (file, socket, process) = unsafe {
                    (
                        libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY),
                        libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0),
                        libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), 0usize, 0usize),
                    )
                };
                let is_alive = std::time::Instant::now().elapsed().as_secs() < 60;
                let n_wrong = [
                    confinement.has_limits && is_alive,
                    file < 0,
                    socket < 0,
                    process < 0,
                    vec![1u8; 1 << 20].len() == 1 << 20,
                ]
                .iter()
                .filter(|right| !**right)
                .count();
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(if confinement.has_seccomp { n_wrong as i32 } else { 77 }) };
            }
            assert!(child > 0, "fork failed");
            let mut status = 0;
            // SAFETY: `status` outlives the call; the child is ours.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert!(libc::WIFEXITED(status), "status {status}");
            let code = libc::WEXITSTATUS(status);
            // A kernel without seccomp (77) can't be confined by it; Linux has had it since 3.17.
            assert_eq!(code, 0, "{code} checks failed");
        }
    }
}
