//! What this processor will run: its features and the kernels the matrix product dispatches to. Reports only.
use hone_kernels::{bf16, gemm, qgemm};

/// One form of the matrix product.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KernelInfo {
    /// `{arch}-{dtypes}-{variant}`.
    pub name: &'static str,
    /// Whether this processor has what it needs.
    pub available: bool,
    /// Whether it is the one that runs: the first available.
    pub runs: bool,
}

/// Every form of the matrix product in this build, best first.
pub fn gemm_kernels() -> Vec<KernelInfo> {
    listed(gemm::KERNELS)
}

/// The same with weights of bf16.
pub fn bf16_kernels() -> Vec<KernelInfo> {
    listed(bf16::KERNELS)
}

/// Those of products of 8-bit codes.
pub fn int8_kernels() -> Vec<KernelInfo> {
    told(qgemm::Kernel::all().map(|k| (k.name, k.available())))
}

fn listed(kernels: &[gemm::Kernel]) -> Vec<KernelInfo> {
    told(kernels.iter().map(|k| (k.name, (k.available)())))
}

/// The first that is available runs.
fn told(kernels: impl Iterator<Item = (&'static str, bool)>) -> Vec<KernelInfo> {
    let mut chosen = false;
    let info = |(name, available)| {
        let runs = available && !chosen;
        chosen |= available;
        KernelInfo { name, available, runs }
    };
    kernels.map(info).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn exactly_one_kernel_runs_and_it_is_available() {
        for kernels in [super::gemm_kernels(), super::bf16_kernels(), super::int8_kernels()] {
            let running: Vec<_> = kernels.iter().filter(|k| k.runs).collect();
            assert_eq!(running.len(), 1);
            assert!(running[0].available);
            assert_eq!(kernels.iter().find(|k| k.available), Some(running[0]));
        }
    }
}
