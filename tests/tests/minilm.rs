//! Real attention inputs: Q, K and V of layers 0 and 5 of all-MiniLM-L6-v2 on two texts, two batch entries of 12 heads,
//! 192 positions of which the second text fills fewer, width 32; and the output of softmax attention, computed in f64
//! and rounded to f32. The file says where they come from.
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use regard::{Align, Attention, Execution, Problem, View, Weighting};
use regard_tests::{Case, Layout, SLOW, Spec, Tensor, check, levels, run, run_into, setup_of, weightings};
use safetensors::SafeTensors;

const SHAPE: [usize; 4] = [2, 12, 192, 32];

/// One layer.
struct Sample {
    layer: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    expected: Vec<f32>,
    /// Valid keys of each text.
    lengths: Vec<usize>,
}

fn layers() -> &'static [Sample; 2] {
    static LAYERS: OnceLock<[Sample; 2]> = OnceLock::new();
    LAYERS.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/minilm_attention.safetensors");
        let bytes = std::fs::read(path).expect("the data lie in tests/data");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensor = |name: &str| {
            let tensor = file.tensor(name).expect(name);
            assert_eq!(tensor.shape(), SHAPE);
            tensor.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().expect("four bytes"))).collect()
        };
        let lengths = file.tensor("lengths").expect("lengths");
        let lengths: Vec<usize> = (lengths.data().chunks_exact(8))
            .map(|x| i64::from_le_bytes(x.try_into().expect("eight bytes")) as usize)
            .collect();
        [0, 5].map(|layer| {
            let part = |part: &str| tensor(&format!("layer{layer}.{part}"));
            let (q, k, v, expected) = (part("q"), part("k"), part("v"), part("out_f64"));
            Sample { layer, q, k, v, expected, lengths: lengths.clone() }
        })
    })
}

impl Sample {
    /// The largest error that is allowed against the output in f64. Layer 0 has elements of 20 in Q and 15 in K, whose
    /// products cancel to scores below 10: their rounding comes out of the exponential.
    fn tolerance(&self) -> f64 {
        if self.layer == 0 { 2e-5 } else { 3e-6 }
    }

    fn tensors(&self, layout: Layout) -> [Tensor; 3] {
        [&self.q, &self.k, &self.v].map(|data| {
            let mut elements = data.iter();
            Tensor::from_fn(SHAPE, layout, |_| *elements.next().expect("as many as the shape says"))
        })
    }

    fn options<'a>(&'a self, options: Attention<'a>) -> Attention<'a> {
        options.key_lengths(&self.lengths)
    }

    /// The largest error of an output.
    fn error(&self, out: &[f32]) -> f64 {
        assert_eq!(out.len(), self.expected.len());
        let errors = out.iter().zip(&self.expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
        errors.fold(0.0, |most, error| if error.is_nan() { f64::INFINITY } else { most.max(error) })
    }
}

fn problem<'a>(options: &Attention<'a>, [q, k, v]: &'a [Tensor; 3]) -> Problem<'a> {
    Problem::new(options, q.view(), k.view(), v.view()).expect("a legal problem")
}

/// Softmax attention with padding, on every level and in every layout, against the f64 output; layouts change no bit.
#[test]
fn softmax_is_that_of_the_model() {
    for sample in layers() {
        assert!(
            sample.lengths.iter().all(|length| *length <= SHAPE[2])
                && sample.lengths.iter().any(|length| *length < SHAPE[2])
        );
        let options = sample.options(Attention::softmax());
        let contiguous = sample.tensors(Layout::Bhsd);
        for level in levels() {
            let output = run(&problem(&options, &contiguous), &setup_of(*level), Execution::Serial);
            let error = sample.error(&output.out);
            println!("layer {}, {}: largest error {error:.2e}", sample.layer, level.isa());
            assert!(error <= sample.tolerance(), "layer {}, {}: {error:e}", sample.layer, level.isa());
            for layout in [Layout::Bshd, Layout::PaddedBshd] {
                let tensors = sample.tensors(layout);
                let other = run_into(&problem(&options, &tensors), &setup_of(*level), Execution::Serial, layout);
                output.assert_same(&other, &format!("{layout:?} on {}", level.isa()));
            }
        }
    }
}

/// The call in one line, with views over the data as they lie in the file and transposed to `[batch, rows, heads,
/// columns]`.
#[test]
fn the_call_in_one_line() {
    let [b, h, n, d] = SHAPE;
    for sample in layers() {
        for level in levels() {
            let options = sample.options(Attention::softmax()).isa(level.isa());
            let view = |data| View::bhsd(data, SHAPE).expect("the file has the shape");
            let bhsd = regard::attention(&options, view(&sample.q), view(&sample.k), view(&sample.v)).expect("legal");
            assert!(sample.error(&bhsd) <= sample.tolerance());
            let turned = |data: &[f32]| -> Vec<f32> {
                (0..b * n * h * d)
                    .map(|i| [i / d / h / n, i / d % h, i / d / h % n, i % d])
                    .map(|[b, head, row, c]| data[((b * h + head) * n + row) * d + c])
                    .collect()
            };
            let (q, k, v) = (turned(&sample.q), turned(&sample.k), turned(&sample.v));
            let view = |data| View::bshd(data, [b, n, h, d]).expect("the same elements");
            let bshd = regard::attention(&options, view(&q), view(&k), view(&v)).expect("legal");
            assert_eq!(bhsd, bshd);
        }
    }
}

/// What lies in the padding does not matter: NaN and infinities there change no bit, for any weighting.
#[test]
fn padding_does_not_leak() {
    for sample in layers() {
        let clean = sample.tensors(Layout::Bhsd);
        let mut poisoned = clean.clone();
        for (batch, length) in sample.lengths.iter().enumerate() {
            for head in 0..SHAPE[1] {
                for row in *length..SHAPE[2] {
                    poisoned[1].fill_row([batch, head, row], if row % 2 == 0 { f32::NAN } else { f32::INFINITY });
                    poisoned[2].fill_row([batch, head, row], if row % 2 == 0 { f32::NEG_INFINITY } else { f32::NAN });
                }
            }
        }
        for weighting in some_weightings() {
            let options = sample.options(Attention::new(weighting.clone()));
            for level in levels() {
                let run = |tensors| run(&problem(&options, tensors), &setup_of(*level), Execution::Serial);
                let what = format!("layer {}, {} on {}", sample.layer, weighting.name(), level.isa());
                let output = run(&clean);
                assert!(output.out.iter().all(|x| x.is_finite()), "{what}");
                output.assert_same(&run(&poisoned), &what);
            }
        }
    }
}

/// Every weighting on these data, under a causal mask too, against the definition in f64 within the bound that is
/// derived from the row's own magnitudes: some rows of some heads.
#[test]
fn every_weighting_is_that_of_the_definition() {
    const ROWS: usize = 11;
    for sample in layers() {
        let tensors = sample.tensors(Layout::Bhsd);
        for (batch, head, first) in [(0, 0, 0), (0, 7, SHAPE[2] - ROWS), (1, 3, 40), (1, 11, 100)] {
            let [q, k, v] = tensors.each_ref().map(|tensor| tensor.head(batch, head));
            let q = q.rows(first, ROWS);
            for weighting in some_weightings() {
                for causal in [None, Some(Align::Offset(first as i64))] {
                    let lengths = &sample.lengths[batch..=batch];
                    let spec = Spec { causal, key_lengths: Some(lengths), ..Spec::new(weighting.clone()) };
                    for level in levels() {
                        check(&Case::new(spec.clone(), &q, &k, &v), &setup_of(*level));
                    }
                }
            }
        }
    }
}

/// All of them, or one of each family where the machine is emulated.
fn some_weightings() -> Vec<Weighting> {
    if SLOW {
        vec![Weighting::Softmax, Weighting::HardRight, Weighting::AverageHard, Weighting::Relu, Weighting::Taylor2]
    } else {
        weightings()
    }
}
