//! Real inputs of attention, which the tool carries with it.

use regard::View;
use safetensors::SafeTensors;

use crate::error::CliError;

/// Q, K and V of layers 0 and 5 of all-MiniLM-L6-v2 on two texts, and the output of softmax attention in f64.
static DATA: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/minilm_attention.safetensors"));

/// One layer; tensors are `[batch, heads, positions, d]`.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) layer: usize,
    shape: [usize; 4],
    pub(super) q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    expected: Vec<f32>,
    /// Valid keys of each text; the others are padding.
    pub(super) lengths: Vec<usize>,
}

impl Sample {
    /// All layers.
    pub(super) fn all() -> Result<Vec<Self>, CliError> {
        let broken = |error| CliError::Failed(format!("the data in this program are broken: {error}"));
        let file = SafeTensors::deserialize(DATA).map_err(broken)?;
        let lengths = file.tensor("lengths").map_err(broken)?;
        let lengths: Vec<usize> =
            lengths.data().as_chunks().0.iter().map(|x| i64::from_le_bytes(*x) as usize).collect();
        let sample = |layer: usize| {
            let tensor = |name| file.tensor(&format!("layer{layer}.{name}")).map_err(broken);
            let f32s = |name| {
                let tensor = tensor(name)?;
                Ok::<_, CliError>(tensor.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
            };
            let mut shape = [1; 4];
            shape.iter_mut().zip(tensor("q")?.shape()).for_each(|(size, found)| *size = *found);
            let lengths = lengths.clone();
            Ok(Self { layer, shape, q: f32s("q")?, k: f32s("k")?, v: f32s("v")?, expected: f32s("out_f64")?, lengths })
        };
        [0, 5].into_iter().map(sample).collect()
    }

    pub(super) fn q(&self) -> Result<View<'_, f32>, CliError> {
        self.view("q", &self.q)
    }

    pub(super) fn k(&self) -> Result<View<'_, f32>, CliError> {
        self.view("k", &self.k)
    }

    pub(super) fn v(&self) -> Result<View<'_, f32>, CliError> {
        self.view("v", &self.v)
    }

    fn view<'a>(&self, tensor: &'static str, data: &'a [f32]) -> Result<View<'a, f32>, CliError> {
        View::bhsd(data, self.shape).map_err(|source| regard::Error::View { tensor, source }.into())
    }

    /// The largest error of softmax attention against the stored output.
    pub(super) fn error(&self, out: &[f32]) -> f64 {
        let errors = out.iter().zip(&self.expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
        errors.fold(0.0, |most, error| if error.is_nan() { f64::INFINITY } else { most.max(error) })
    }

    /// The largest error that rounding explains. Layer 0 has scores of several hundred.
    pub(super) fn tolerance(&self) -> f64 {
        if self.layer == 0 { 2e-5 } else { 3e-6 }
    }
}
