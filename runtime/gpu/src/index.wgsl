struct Params {
    n: u32,
    length: i32,
    inner: u32,
    count: u32,
{{MORE}}}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(2) var<storage, read_write> I: array<{{INDEX}}>;

// The place an index names, or -1 for none.
fn position(i: u32) -> i32 {
{{POSITION}}
    if at < 0 {
        at += P.length;
    }
    return select(-1, at, at >= 0 && at < P.length);
}
