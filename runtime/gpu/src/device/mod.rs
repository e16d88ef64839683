//! A device behind wgpu: opening one, making its pipelines, each tried before it is used.
//!
//! What can go wrong on a device is an error here, never a panic: a driver that refuses a shader, one that computes it
//! wrongly, too little memory, a device that goes away or does not answer.
use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::kernel::{Call, Given, Kernel, Matrices, Needs, PARAMS};
use crate::product;

mod cache;
mod choice;
mod recording;
#[cfg(test)]
mod tests;
mod weights;

use cache::Cache;
pub use recording::{Binding, Builder, Recording, Weights};
pub use weights::Name;

/// Storage buffers a kernel may bind, on every device.
pub const STORAGE_BINDINGS: usize = 8;

/// Areas of a buffer begin at multiples of it, on every device.
pub const ALIGN: usize = 256;

/// The version of wgpu that this is built with: what it makes of a kernel changes from one to the next.
pub(crate) const WGPU: &str = "30.0.2";

/// How long a submission may take before the device counts as lost. Drivers themselves give up on one kernel after ten seconds at
/// most; a submission is many of them.
const WATCHDOG: Duration = Duration::from_secs(30);

/// What GPUs are driven through on a target: what wgpu is built with there (`Cargo.toml`).
struct Interfaces {
    backends: wgpu::Backends,
    /// As people call them.
    names: &'static str,
    /// What may help where there is no GPU, behind a sentence.
    advice: &'static str,
}

const INTERFACES: Interfaces = if cfg!(target_vendor = "apple") {
    Interfaces { backends: wgpu::Backends::METAL, names: "Metal", advice: "" }
} else if cfg!(windows) {
    Interfaces {
        backends: wgpu::Backends::VULKAN.union(wgpu::Backends::DX12),
        names: "Vulkan or Direct3D 12",
        advice: "; a driver comes from the GPU's maker",
    }
} else {
    Interfaces {
        backends: wgpu::Backends::VULKAN,
        names: "Vulkan",
        advice: "; Vulkan drivers are in packages such as mesa-vulkan-drivers",
    }
};

/// Why a device cannot be had, or did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is no adapter that can be used.
    #[error("no GPU was found ({why}){}", INTERFACES.advice)]
    NoAdapter {
        /// What was looked for.
        why: String,
    },
    /// The adapter does not give a device.
    #[error("GPU `{adapter}` cannot be opened: {why}")]
    Refused {
        /// The adapter.
        adapter: String,
        /// Its message.
        why: String,
    },
    /// A kernel cannot be made or computes something else on this device.
    #[error("kernel {kernel} is not used on this GPU: {why}")]
    Kernel {
        /// The kernel.
        kernel: String,
        /// The compiler's message, or what it computed.
        why: String,
    },
    /// A call that this crate was asked to record is not one.
    #[error("a call of {kernel} cannot be recorded: {why}")]
    Call {
        /// The kernel.
        kernel: String,
        /// Why.
        why: String,
    },
    /// Memory.
    #[error("the GPU has not {bytes} bytes in one piece for {what}")]
    Memory {
        /// What is to be held.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// It is gone, or does not answer.
    #[error("the GPU is lost: {why}")]
    Lost {
        /// What the driver says.
        why: String,
    },
}

/// What there is to run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// As the driver calls it.
    pub name: String,
    /// The driver and its version; empty where it is the system's own (Metal).
    pub driver: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// The interface: `vulkan`, `metal` or `dx12`.
    pub backend: String,
}

impl Adapter {
    fn of(info: &wgpu::AdapterInfo) -> Adapter {
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        let driver = format!("{} {}", info.driver, info.driver_info).trim().to_string();
        Adapter { name: info.name.clone(), driver, kind, backend: format!("{:?}", info.backend).to_lowercase() }
    }

    /// Whether it is a program and no GPU: right, and slower than the CPU's own kernels.
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }

    /// Whether it is known when its driver becomes another one: what passed its trials on a driver says nothing of the next.
    fn says_its_version(&self) -> bool {
        !matches!(self.driver.as_str(), "" | "0.0.0.0")
    }

    /// What measurements on it are kept under.
    pub fn key(&self) -> String {
        format!("{}|{}|{}|wgpu {WGPU}", self.name, self.driver, self.backend)
    }
}

/// Which adapters may be opened, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Take a software adapter where there is no other.
    pub software: bool,
    /// Take this one alone: its number in [`Device::adapters`], or a part of its name in whatever case.
    pub which: Option<String>,
    /// Where to keep what the driver compiled and which kernels passed their trials, a file a device; `None` keeps nothing, and
    /// of a driver that does not say its version (Metal) nothing is kept either.
    pub cache: Option<PathBuf>,
    /// Takes what this makes of each text in place of what wgpu makes of it: the words of a module in SPIR-V.
    #[cfg(test)]
    translated: Option<fn(&Kernel) -> Vec<u32>>,
}

struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// A kernel that passed its trials, or why it is none for this device.
type Made = Result<Arc<Pipeline>, GpuError>;

/// An open device. Copies are the same one.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    adapter: Adapter,
    limits: wgpu::Limits,
    /// Sizes that its subgroups may have, by what it says of itself; none where kernels have nothing of them.
    subgroups: Vec<usize>,
    /// Matrices that it may have, by what it says of itself.
    claimed: Vec<Matrices>,
    /// Those of them that it has, once they were tried, and why others are none.
    matrices: OnceLock<(Option<Matrices>, Vec<GpuError>)>,
    /// What went wrong outside of any call, first things first.
    wrong: Arc<Mutex<Option<String>>>,
    /// What became of each kernel that was tried. Whoever tries one holds it, so that nobody runs it untried.
    pipelines: Mutex<HashMap<String, Arc<Mutex<Option<Made>>>>>,
    /// Adapters that were preferred to this one and did not open.
    passed_over: Vec<GpuError>,
    watchdog: Mutex<Duration>,
    layouts: Mutex<HashMap<usize, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>>,
    cache: Option<Cache>,
    choices: choice::Choices,
    weights: Mutex<weights::Known>,
    /// No more buffers are to be had.
    starved: AtomicBool,
    #[cfg(test)]
    translated: Option<fn(&Kernel) -> Vec<u32>>,
    /// Buffers, bind groups and pipelines made so far.
    made: AtomicUsize,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.inner.adapter.name)
    }
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What wgpu's futures give: natively they are ready at once, or when polled again.
fn wait<F: Future>(f: F) -> F::Output {
    let mut f = std::pin::pin!(f);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(v) = f.as_mut().poll(&mut cx) {
            return v;
        }
        std::thread::yield_now();
    }
}

fn instance() -> wgpu::Instance {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = INTERFACES.backends;
    desc.flags = wgpu::InstanceFlags::empty();
    // Windows has the old compiler of Direct3D 12 always. The new one is a library to be shipped; left to itself wgpu takes one
    // that happens to lie on the PATH, and what passed its trials would then hold for one compiler and run by another. The old one
    // knows shader model 5.1: naga takes words of bytes apart there (`dot4I8Packed`, `unpack4xI8`), and the device says of itself
    // that it has neither 16-bit floats nor subgroups.
    desc.backend_options.dx12.shader_compiler = wgpu::Dx12Compiler::Fxc;
    // Running out must be an error of ours and not the end of a process.
    desc.memory_budget_thresholds.for_resource_creation = Some(95);
    wgpu::Instance::new(desc)
}

fn adapters() -> Vec<wgpu::Adapter> {
    let rank = |a: &wgpu::Adapter| {
        let info = a.get_info();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        // A GPU that two interfaces know is there twice: by Vulkan, which kernels are known to run on, first.
        (kind, info.backend != wgpu::Backend::Vulkan)
    };
    let mut all = wait(instance().enumerate_adapters(INTERFACES.backends));
    all.sort_by_key(rank);
    all
}

/// What products of matrices of f16 need.
const MULTIPLY: wgpu::Features =
    wgpu::Features::SHADER_F16.union(wgpu::Features::SUBGROUP).union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// Sizes that an adapter says its subgroups may have; none where shaders have nothing of them.
fn subgroups(adapter: &wgpu::Adapter) -> Vec<usize> {
    let info = adapter.get_info();
    let sizes = info.subgroup_min_size as usize..=info.subgroup_max_size as usize;
    let has = adapter.features().contains(wgpu::Features::SUBGROUP);
    crate::rows::SUBGROUPS.into_iter().filter(|size| has && sizes.contains(size)).collect()
}

/// Matrices of f16, with sums in `f32`, that an adapter says its subgroups multiply, the largest first, with each of those sizes of
/// subgroups.
fn claimed(adapter: &wgpu::Adapter, subgroups: &[usize]) -> Vec<Matrices> {
    if !adapter.features().contains(MULTIPLY) {
        return Vec::new();
    }
    let all = adapter.cooperative_matrix_properties();
    let has = |side: u32| {
        all.iter().any(|p| {
            (p.m_size, p.n_size, p.k_size) == (side, side, side)
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        })
    };
    let of = |side: u32| subgroups.iter().map(move |&subgroup| Matrices { side: side as usize, subgroup });
    [16, 8].into_iter().filter(|&side| has(side)).flat_map(of).collect()
}

/// Which adapters to try, by their numbers, the likeliest first.
fn candidates(known: &[Adapter], options: &Options) -> Result<Vec<usize>, GpuError> {
    let none = |why: String| Err(GpuError::NoAdapter { why });
    let all = 0..known.len();
    if known.is_empty() {
        return none(format!("none is known to {}", INTERFACES.names));
    }
    let Some(which) = &options.which else {
        let chosen: Vec<usize> = all.filter(|&i| options.software || !known[i].is_software()).collect();
        return if chosen.is_empty() { none("there is only a software adapter".into()) } else { Ok(chosen) };
    };
    let named = |i: &usize| known[*i].name.to_lowercase().contains(&which.to_lowercase());
    let chosen: Vec<usize> = match which.parse::<usize>() {
        Ok(number) => all.filter(|&i| i == number).collect(),
        Err(_) => all.filter(named).collect(),
    };
    if chosen.is_empty() {
        let names: Vec<String> = known.iter().enumerate().map(|(i, a)| format!("{i}: {}", a.name)).collect();
        return none(format!("`{which}` is none of {}", names.join(", ")));
    }
    Ok(chosen)
}

/// The first of them that opens, and why those before it did not.
fn first<A, D>(
    all: impl Iterator<Item = A>,
    mut open: impl FnMut(A) -> Result<D, GpuError>,
) -> Result<(D, Vec<GpuError>), GpuError> {
    let mut refused = Vec::new();
    for a in all {
        match open(a) {
            Ok(d) => return Ok((d, refused)),
            Err(e) => refused.push(e),
        }
    }
    Err(refused.into_iter().next().unwrap_or(GpuError::NoAdapter { why: "none was asked".into() }))
}

impl Device {
    /// Every adapter there is, the likeliest first.
    pub fn adapters() -> Vec<Adapter> {
        adapters().iter().map(|a| Adapter::of(&a.get_info())).collect()
    }

    /// Opens the likeliest adapter that opens.
    ///
    /// # Errors
    /// [`GpuError::NoAdapter`] when there is none, only software where that is not asked for, or not the one that is;
    /// [`GpuError::Refused`] of the likeliest when none opens.
    pub fn open(options: &Options) -> Result<Device, GpuError> {
        let all = adapters();
        let known: Vec<Adapter> = all.iter().map(|a| Adapter::of(&a.get_info())).collect();
        let chosen = candidates(&known, options)?;
        let (mut device, passed_over) = first(chosen.into_iter().map(|i| &all[i]), |a| Device::of(a, options))?;
        if let Some(inner) = Arc::get_mut(&mut device.inner) {
            inner.passed_over = passed_over;
        }
        Ok(device)
    }

    /// Adapters that were preferred to this one and did not open, and why.
    pub fn passed_over(&self) -> &[GpuError] {
        &self.inner.passed_over
    }

    fn of(adapter: &wgpu::Adapter, options: &Options) -> Result<Device, GpuError> {
        let info = Adapter::of(&adapter.get_info());
        let has = adapter.limits();
        let subgroups = subgroups(adapter);
        let claimed = claimed(adapter, &subgroups);
        // What every kernel keeps to is asked for, and nothing better, so that one that does not is refused everywhere; but what
        // multiplies matrices keeps more of them at hand, which every device that does so has room for.
        let shared = if claimed.is_empty() { 16 << 10 } else { has.max_compute_workgroup_storage_size.min(32 << 10) };
        let limits = wgpu::Limits {
            max_storage_buffers_per_shader_stage: STORAGE_BINDINGS as u32,
            max_compute_workgroup_storage_size: shared,
            max_compute_invocations_per_workgroup: 256,
            max_compute_workgroup_size_x: 256,
            max_compute_workgroup_size_y: 256,
            max_compute_workgroup_size_z: 64,
            max_buffer_size: has.max_buffer_size,
            max_storage_buffer_binding_size: has.max_storage_buffer_binding_size,
            ..wgpu::Limits::downlevel_defaults()
        };
        let refused = |why: String| GpuError::Refused { adapter: info.name.clone(), why };
        let mut desc = wgpu::DeviceDescriptor {
            label: None,
            required_features: adapter.features() & wgpu::Features::PIPELINE_CACHE,
            required_limits: limits.clone(),
            experimental_features: wgpu::ExperimentalFeatures::disabled(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        };
        if !subgroups.is_empty() {
            desc.required_features |= wgpu::Features::SUBGROUP;
        }
        if !claimed.is_empty() {
            desc.required_features |= MULTIPLY;
            // SAFETY: of what is experimental the kernels use matrices of one kind, in texts of this crate, and each is tried before
            // it is used.
            desc.experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        #[cfg(test)]
        if options.translated.is_some() {
            desc.required_features |= wgpu::Features::PASSTHROUGH_SHADERS;
            // SAFETY: the modules that are handed on are naga's, of texts that it has validated.
            desc.experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let (device, queue) = wait(adapter.request_device(&desc)).map_err(|e| refused(e.to_string()))?;
        let wrong = Arc::new(Mutex::new(None));
        let (a, b) = (wrong.clone(), wrong.clone());
        device.set_device_lost_callback(move |reason, text| {
            locked(&a).get_or_insert_with(|| format!("{reason:?}: {text}"));
        });
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            locked(&b).get_or_insert_with(|| e.to_string());
        }));
        let cache = options.cache.as_ref().filter(|_| info.says_its_version());
        let cache = cache.map(|folder| Cache::open(folder, &info, &device));
        let choices = choice::Choices::new(cache.as_ref().map(Cache::chosen).unwrap_or_default());
        let inner = Inner {
            device,
            queue,
            adapter: info,
            limits,
            subgroups,
            claimed,
            matrices: OnceLock::new(),
            wrong,
            pipelines: Mutex::default(),
            passed_over: Vec::new(),
            watchdog: Mutex::new(WATCHDOG),
            layouts: Mutex::default(),
            cache,
            choices,
            weights: Mutex::default(),
            starved: AtomicBool::new(false),
            #[cfg(test)]
            translated: options.translated,
            made: AtomicUsize::new(0),
        };
        Ok(Device { inner: Arc::new(inner) })
    }

    /// What it runs on.
    pub fn adapter(&self) -> &Adapter {
        &self.inner.adapter
    }

    /// Buffers, bind groups and pipelines made so far: what does not grow while recordings run.
    pub fn objects_made(&self) -> usize {
        self.inner.made.load(Ordering::Relaxed)
    }

    /// Buffers of weights that recordings have now, and their bytes: what they share counts once.
    pub fn weights(&self) -> (usize, usize) {
        locked(&self.inner.weights).there()
    }

    /// Most bytes one operand may take.
    pub fn most_bytes(&self) -> usize {
        let bytes = self.inner.limits.max_storage_buffer_binding_size.min(self.inner.limits.max_buffer_size);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Whether it says that it has what a kernel asks.
    fn has(&self, needs: Needs) -> bool {
        match needs {
            Needs::Nothing => true,
            Needs::Subgroups(size) => self.inner.subgroups.contains(&size),
            Needs::Matrices(of) => self.inner.claimed.contains(&of),
        }
    }

    /// The matrices of f16 that it multiplies, when it does: those that a product of them came out right with. The first call tries.
    pub fn matrices(&self) -> Option<Matrices> {
        self.tried_matrices().0
    }

    /// Why it multiplies none, where it says of itself that it does.
    pub fn no_matrices(&self) -> &[GpuError] {
        match self.tried_matrices() {
            (Some(_), _) => &[],
            (None, why) => why,
        }
    }

    fn tried_matrices(&self) -> &(Option<Matrices>, Vec<GpuError>) {
        self.inner.matrices.get_or_init(|| {
            let mut refused = Vec::new();
            for &of in &self.inner.claimed {
                let Some(call) = product::probe(of) else { continue };
                match self.ready(&call.kernel) {
                    Ok(()) => return (Some(of), refused),
                    Err(e) => refused.push(e),
                }
            }
            (None, refused)
        })
    }

    /// Takes the device away, as a driver that crashes does: everything recorded on it fails from here on.
    pub fn lose(&self) {
        self.inner.device.destroy();
    }

    /// Gives no more buffers, as a device whose memory is full; or gives them again.
    pub fn starve(&self, starved: bool) {
        self.inner.starved.store(starved, Ordering::Relaxed);
    }

    /// Puts on disk what is worth it, if anything is that is not there yet; without a folder for it nothing is done.
    pub fn keep(&self) {
        if let Some(cache) = &self.inner.cache {
            cache.keep();
        }
    }

    /// What is to be said of the file that the device keeps things in: that it was ignored, or could not be written, and why.
    pub fn cache_told(&self) -> Option<String> {
        self.inner.cache.as_ref().and_then(Cache::told)
    }

    /// Makes the kernel ready and tries it, once; not where a file of [`Options::cache`] says that its text passed on this device.
    ///
    /// # Errors
    /// [`GpuError::Kernel`] when the driver refuses it, or it does not pass its trials; the same every time.
    /// [`GpuError::Lost`] and [`GpuError::Memory`] say nothing of the kernel.
    pub fn ready(&self, kernel: &Kernel) -> Result<(), GpuError> {
        self.pipeline(kernel).map(drop)
    }

    /// That call, or the first of those that stand for it whose kernel is one for this device; and why those before it are none.
    ///
    /// # Errors
    /// [`GpuError::Lost`], [`GpuError::Memory`].
    pub fn usable<'c>(&self, call: &'c Call) -> Result<(Option<&'c Call>, Vec<GpuError>), GpuError> {
        let (mut next, mut refused) = (Some(call), Vec::new());
        while let Some(call) = next {
            match self.ready(&call.kernel) {
                Ok(()) => break,
                Err(e @ (GpuError::Lost { .. } | GpuError::Memory { .. })) => return Err(e),
                Err(e) => refused.push(e),
            }
            next = call.otherwise.as_deref();
        }
        Ok((next, refused))
    }

    fn pipeline(&self, kernel: &Kernel) -> Made {
        let place = locked(&self.inner.pipelines).entry(kernel.name.clone()).or_default().clone();
        let mut known = locked(&place);
        if let Some(known) = &*known {
            return known.clone();
        }
        let cache = self.inner.cache.as_ref();
        let made = self.compiled(kernel);
        let made = match made {
            Ok(made) if cache.is_some_and(|c| c.passed(kernel)) => Ok(made),
            Ok(made) => self.tried(kernel, &made).map(|()| {
                cache.inspect(|c| c.pass(kernel));
                made
            }),
            Err(e) => Err(e),
        };
        // That the device is gone, or full, says nothing of the kernel: it has not been tried.
        if !matches!(made, Err(GpuError::Lost { .. } | GpuError::Memory { .. })) {
            *known = Some(made.clone());
        }
        made
    }

    fn compiled(&self, kernel: &Kernel) -> Result<Arc<Pipeline>, GpuError> {
        let buffers = kernel.reads + kernel.writes;
        if buffers > STORAGE_BINDINGS {
            let why = format!("it binds {buffers} buffers, more than {STORAGE_BINDINGS}");
            return Err(GpuError::Kernel { kernel: kernel.name.clone(), why });
        }
        if !self.has(kernel.needs) {
            let why = format!("the device has no {:?}", kernel.needs);
            return Err(GpuError::Kernel { kernel: kernel.name.clone(), why });
        }
        let device = &self.inner.device;
        let (layout, pipeline_layout) = self.layout(buffers);
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let inner_scope = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let module = self.module(kernel);
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            // Kernels write shared memory before they read it; clearing it costs some compilers half a minute.
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.inner.cache.as_ref().and_then(Cache::pipelines),
        });
        self.inner.made.fetch_add(1, Ordering::Relaxed);
        let wrong = wait(inner_scope.pop()).or(wait(scope.pop()));
        match wrong {
            Some(e) => Err(GpuError::Kernel { kernel: kernel.name.clone(), why: e.to_string() }),
            None => Ok(Arc::new(Pipeline { pipeline, layout })),
        }
    }

    fn module(&self, kernel: &Kernel) -> wgpu::ShaderModule {
        let device = &self.inner.device;
        #[cfg(test)]
        if let Some(translated) = self.inner.translated {
            let spirv = Some(translated(kernel).into());
            let main = wgpu::PassthroughShaderEntryPoint { name: "main".into(), workgroup_size: (0, 0, 0) };
            let entry_points = vec![main].into();
            let desc =
                wgpu::ShaderModuleDescriptorPassthrough { label: None, entry_points, spirv, ..Default::default() };
            // SAFETY: the words are naga's, of a text that it has validated.
            return unsafe { device.create_shader_module_passthrough(desc) };
        }
        let desc = wgpu::ShaderModuleDescriptor {
            label: Some(&kernel.name),
            source: wgpu::ShaderSource::Wgsl(kernel.source.as_str().into()),
        };
        if cfg!(debug_assertions) {
            return device.create_shader_module(desc);
        }
        // SAFETY: the text is this crate's own. Its loops run over parameters and end; its indices are below the lengths
        // that the callers bind, which the trials and the debug builds, where every access is checked, confirm; an index
        // that comes from data is compared with the length first.
        unsafe { device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked()) }
    }

    fn layout(&self, buffers: usize) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
        let mut layouts = locked(&self.inner.layouts);
        let make = || {
            let entry = |binding: usize| wgpu::BindGroupLayoutEntry {
                binding: binding as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding {
                        0 => wgpu::BufferBindingType::Uniform,
                        _ => wgpu::BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            };
            let entries: Vec<_> = (0..=buffers).map(entry).collect();
            let device = &self.inner.device;
            let desc = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
            let layout = device.create_bind_group_layout(&desc);
            let desc =
                wgpu::PipelineLayoutDescriptor { label: None, bind_group_layouts: &[Some(&layout)], immediate_size: 0 };
            let pipeline = device.create_pipeline_layout(&desc);
            (layout, pipeline)
        };
        layouts.entry(buffers).or_insert_with(make).clone()
    }

    /// Runs the kernel's trials.
    fn tried(&self, kernel: &Kernel, pipeline: &Arc<Pipeline>) -> Result<(), GpuError> {
        let trials = kernel.trials();
        if trials.is_empty() {
            return Err(GpuError::Kernel { kernel: kernel.name.clone(), why: "it has no trial".into() });
        }
        let parts = kernel.parts();
        for trial in trials {
            let mut at = ALIGN;
            let mut area = |bytes: usize| {
                let range = at..at + bytes;
                at = range.end.next_multiple_of(ALIGN);
                range
            };
            let operands: Vec<_> = trial.operands.iter().map(|o| area(o.len())).collect();
            let results: Vec<_> = trial.results.iter().map(|r| area(r.len())).collect();
            let made: Vec<_> = parts.iter().map(|p| area(p.bytes)).collect();
            let mut builder = Builder::new(self, at);
            let bindings: Vec<_> = operands.iter().chain(&results).map(|r| Binding::Arena(r.clone())).collect();
            builder.place(pipeline, &trial.call, &bindings)?;
            for (part, to) in parts.iter().zip(&made) {
                let from = part.at.iter().map(|given| match given {
                    Given::Operand(i) => &operands[*i],
                    Given::Part(i) => &made[*i],
                });
                let bindings: Vec<_> = from.chain([to]).map(|r| Binding::Arena(r.clone())).collect();
                builder.place(&self.pipeline(&part.call.kernel)?, &part.call, &bindings)?;
            }
            let mut recording = builder.finish()?;
            let given = operands.iter().zip(&trial.operands).chain(results.iter().zip(&trial.before));
            for (range, bytes) in given {
                recording.upload(range.start, bytes)?;
            }
            let mut wrong = None;
            let mut first = Vec::new();
            let asked: Vec<_> = results.iter().chain(made.last()).cloned().collect();
            recording.run(0, &asked, |i, found| {
                if i == 0 {
                    first.extend_from_slice(found);
                }
                let differs = || match i < results.len() {
                    true => trial.differs(i, found),
                    false => trial.differs_from_parts(found, &first),
                };
                wrong = wrong.take().or_else(differs);
            })?;
            if let Some(why) = wrong {
                return Err(GpuError::Kernel { kernel: kernel.name.clone(), why });
            }
        }
        Ok(())
    }

    /// Takes it for lost from here on, for everybody who uses it.
    fn give_up(&self, why: String) -> GpuError {
        let why = locked(&self.inner.wrong).get_or_insert(why).clone();
        GpuError::Lost { why }
    }

    /// What went wrong since the last time, if anything did.
    fn failed(&self) -> Result<(), GpuError> {
        match locked(&self.inner.wrong).clone() {
            Some(why) => Err(GpuError::Lost { why }),
            None => Ok(()),
        }
    }

    /// A buffer; one that is written here begins mapped.
    fn buffer(&self, what: &'static str, bytes: usize, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, GpuError> {
        let device = &self.inner.device;
        let size = bytes.max(16).next_multiple_of(16);
        if size as u64 > self.inner.limits.max_buffer_size || self.inner.starved.load(Ordering::Relaxed) {
            return Err(GpuError::Memory { what, bytes });
        }
        let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size: size as u64,
            usage,
            mapped_at_creation: usage.contains(wgpu::BufferUsages::MAP_WRITE),
        });
        self.inner.made.fetch_add(1, Ordering::Relaxed);
        match wait(scope.pop()) {
            Some(_) => Err(GpuError::Memory { what, bytes }),
            None => Ok(buffer),
        }
    }
}

/// Bytes of a call's parameters, in a slot of their own.
fn params(words: &[u32]) -> Vec<u8> {
    let mut out: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    out.resize(PARAMS * 4, 0);
    out
}
