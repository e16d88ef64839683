//! What a session runs on: this machine's CPU, or a GPU.
//!
//! It knows no graph and no plan. Without the feature `gpu` there is no GPU to be had, and asking for one says so.
use std::fmt;

/// What to run on.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// A GPU; what has no kernel for it runs on the CPU, and the plan says what.
    Gpu(Gpu),
}

/// An open GPU. Copies are the same one.
#[derive(Clone)]
pub struct Gpu {
    #[cfg(feature = "gpu")]
    pub(crate) device: hone_gpu::device::Device,
    #[cfg(not(feature = "gpu"))]
    none: std::convert::Infallible,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe().name)
    }
}

/// What is known of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// As its driver calls it.
    pub name: String,
    /// The driver and its version.
    pub driver: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
}

impl Adapter {
    /// Whether it is a program and no GPU: right, and slower than the CPU's own kernels.
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }
}

/// Why there is no GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// This build has none.
    #[error("this build cannot use a GPU; build with `--features gpu`, or use --device cpu")]
    NotBuilt,
    /// There is none, or it does not open.
    #[error("{why}")]
    None {
        /// Why.
        why: String,
    },
}

#[cfg(feature = "gpu")]
mod built {
    use std::path::Path;

    use super::{Adapter, DeviceError, Gpu};
    use hone_gpu::device::{Device, Options};

    impl Gpu {
        /// Opens the likeliest GPU that opens; a software adapter only where `software` allows one and there is no other. In the
        /// folder `cache` it keeps what the next process need not compile and try again.
        ///
        /// # Errors
        /// [`DeviceError`] when there is none or none opens.
        pub fn open(software: bool, cache: Option<&Path>) -> Result<Gpu, DeviceError> {
            Gpu::with(Options { software, which: None, cache: cache.map(Path::to_path_buf) })
        }

        /// Opens the one of that number in [`Gpu::all`], or the likeliest with that in its name, software or not.
        ///
        /// # Errors
        /// [`DeviceError`] when there is none or it does not open.
        pub fn open_one(which: &str, cache: Option<&Path>) -> Result<Gpu, DeviceError> {
            Gpu::with(Options { software: true, which: Some(which.into()), cache: cache.map(Path::to_path_buf) })
        }

        fn with(options: Options) -> Result<Gpu, DeviceError> {
            let device = Device::open(&options).map_err(|e| DeviceError::None { why: e.to_string() })?;
            Ok(Gpu { device })
        }

        /// Those that were preferred to it and did not open, and why.
        pub fn passed_over(&self) -> Vec<String> {
            self.device.passed_over().iter().map(ToString::to_string).collect()
        }

        /// Every GPU there is, the likeliest first.
        ///
        /// # Errors
        /// [`DeviceError::NotBuilt`].
        pub fn all() -> Result<Vec<Adapter>, DeviceError> {
            Ok(Device::adapters().iter().map(of).collect())
        }

        /// What it is.
        pub fn describe(&self) -> Adapter {
            of(self.device.adapter())
        }

        /// What measurements on it are kept under: adapter, driver, interface.
        pub fn key(&self) -> String {
            self.device.adapter().key()
        }

        /// Buffers, bind groups and pipelines made so far.
        pub fn objects_made(&self) -> usize {
            self.device.objects_made()
        }

        /// Buffers of weights that plans have there now, and their bytes: what they share counts once.
        pub fn weights(&self) -> (usize, usize) {
            self.device.weights()
        }

        /// Whether it multiplies matrices of f16. The first call tries it.
        pub fn multiplies_halves(&self) -> bool {
            self.device.matrices().is_some()
        }

        /// Takes the device away, as a driver that crashes does.
        pub fn lose(&self) {
            self.device.lose();
        }

        /// Gives no more memory, as a GPU whose memory is full, or gives it again.
        pub fn starve(&self, starved: bool) {
            self.device.starve(starved);
        }
    }

    fn of(a: &hone_gpu::device::Adapter) -> Adapter {
        Adapter { name: a.name.clone(), driver: a.driver.clone(), kind: a.kind }
    }
}

#[cfg(not(feature = "gpu"))]
impl Gpu {
    /// Opens the likeliest GPU.
    ///
    /// # Errors
    /// [`DeviceError::NotBuilt`], always.
    pub fn open(_software: bool, _cache: Option<&std::path::Path>) -> Result<Gpu, DeviceError> {
        Err(DeviceError::NotBuilt)
    }

    /// Opens one GPU.
    ///
    /// # Errors
    /// [`DeviceError::NotBuilt`], always.
    pub fn open_one(_which: &str, _cache: Option<&std::path::Path>) -> Result<Gpu, DeviceError> {
        Err(DeviceError::NotBuilt)
    }

    /// Those that were preferred to it and did not open.
    pub fn passed_over(&self) -> Vec<String> {
        match self.none {}
    }

    /// Every GPU there is.
    ///
    /// # Errors
    /// [`DeviceError::NotBuilt`], always.
    pub fn all() -> Result<Vec<Adapter>, DeviceError> {
        Err(DeviceError::NotBuilt)
    }

    /// What it is.
    pub fn describe(&self) -> Adapter {
        match self.none {}
    }

    /// What measurements on it are kept under.
    pub fn key(&self) -> String {
        match self.none {}
    }

    /// Buffers, bind groups and pipelines made so far.
    pub fn objects_made(&self) -> usize {
        match self.none {}
    }

    /// Buffers of weights that plans have there now, and their bytes.
    pub fn weights(&self) -> (usize, usize) {
        match self.none {}
    }

    /// Whether it multiplies matrices of f16.
    pub fn multiplies_halves(&self) -> bool {
        match self.none {}
    }

    /// Takes the device away.
    pub fn lose(&self) {
        match self.none {}
    }

    /// Gives no more memory.
    pub fn starve(&self, _starved: bool) {
        match self.none {}
    }
}
