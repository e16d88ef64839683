//! What the examples share: Vulkan's adapters by wgpu alone, with nothing of hone's between.
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Every adapter, as the loader has them.
pub(crate) fn adapters() -> Vec<wgpu::Adapter> {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = wgpu::Backends::VULKAN;
    // A layer is there when the environment says so.
    desc.flags = wgpu::InstanceFlags::empty();
    wait(wgpu::Instance::new(desc).enumerate_adapters(wgpu::Backends::VULKAN))
}

/// What wgpu's futures give: natively they are ready at once, or when polled again.
pub(crate) fn wait<F: Future>(f: F) -> F::Output {
    let mut f = pin!(f);
    loop {
        if let Poll::Ready(v) = f.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return v;
        }
    }
}
