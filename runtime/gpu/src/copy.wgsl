// y[obase + Σ at · ostride] = x[base + Σ source(at) · stride], for every place of a box of axes, the innermost first.
//
// source(at) is at - before where that is within 0..kept; elsewhere the element is `fill` (mode 0) or that of the place the
// mode names: 1 the nearest edge, 2 reflected without repeating the edge, 3 from the other end. Elements are units of
// {{UNIT}}; those of bytes are written a word at a time, so y must be unbroken and begin a word there.

struct Params {
    n: u32,
    rank: u32,
    base: i32,
    obase: u32,
    mode: u32,
    fill: u32,
    fill_high: u32,
    elements: u32,
    dims: array<vec4<u32>, 2>,
    strides: array<vec4<i32>, 2>,
    ostrides: array<vec4<u32>, 2>,
    before: array<vec4<i32>, 2>,
    kept: array<vec4<i32>, 2>,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> x: array<{{WORD}}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{WORD}}>;

struct Place {
    source: i32,
    to: u32,
    inside: bool,
}

fn place(i: u32) -> Place {
    var rest = i;
    var p = Place(P.base, P.obase, true);
    for (var d = 0u; d < P.rank; d++) {
        let length = P.dims[d >> 2u][d & 3u];
        let at = rest % length;
        rest /= length;
        p.to += at * P.ostrides[d >> 2u][d & 3u];
        let kept = P.kept[d >> 2u][d & 3u];
        var source = i32(at) - P.before[d >> 2u][d & 3u];
        if source < 0 || source >= kept {
            switch P.mode {
                case 1u: {
                    source = clamp(source, 0, kept - 1);
                }
                case 2u: {
                    let turn = max(2 * kept - 2, 1);
                    source = ((source % turn) + turn) % turn;
                    source = select(turn - source, source, source < kept);
                }
                case 3u: {
                    source = ((source % kept) + kept) % kept;
                }
                default: {
                    p.inside = false;
                    source = 0;
                }
            }
        }
        p.source += source * P.strides[d >> 2u][d & 3u];
    }
    return p;
}

fn one(i: u32) {
{{BODY}}
}

{{LINE}}
