//! The instruction-set extensions that matter to the kernels, by the standard library's detection only: it also asks
//! the operating system, which the processor's own bits do not.

/// The names of those that are listed and present.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! present {
    ($detected:ident: $($name:tt),*) => {{
        let mut found = Vec::new();
        $(if std::arch::$detected!($name) { found.push($name.to_owned()); })*
        found
    }};
}

/// The extensions of this machine, in a fixed order.
pub(crate) fn detect() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    let features = present!(is_x86_feature_detected:
        "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16",
        "avx512fp16");
    #[cfg(target_arch = "aarch64")]
    let features = present!(is_aarch64_feature_detected: "neon", "fp16", "bf16", "dotprod", "i8mm", "sve", "sve2");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let features = Vec::new();
    features
}
