//! Running the tool on files of its own.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// A tensor as it is in a file.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// The tensors of a file.
pub(crate) type Tensors = BTreeMap<String, Raw>;

pub(crate) fn f32s(shape: &[usize], data: &[f32]) -> Raw {
    let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    Raw { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

/// Numbers rounded to f16 or bf16.
pub(crate) fn halves(dtype: Dtype, shape: &[usize], data: &[f32]) -> Raw {
    let half = |x: &f32| match dtype {
        Dtype::BF16 => regard::bf16::from_f32(*x).to_le_bytes(),
        _ => regard::f16::from_f32(*x).to_le_bytes(),
    };
    Raw { dtype, shape: shape.to_vec(), bytes: data.iter().flat_map(half).collect() }
}

pub(crate) fn i8s(shape: &[usize], data: &[i8]) -> Raw {
    Raw { dtype: Dtype::I8, shape: shape.to_vec(), bytes: data.iter().map(|x| *x as u8).collect() }
}

pub(crate) fn i32s(shape: &[usize], data: &[i32]) -> Raw {
    let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    Raw { dtype: Dtype::I32, shape: shape.to_vec(), bytes }
}

pub(crate) fn i64s(shape: &[usize], data: &[i64]) -> Raw {
    let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    Raw { dtype: Dtype::I64, shape: shape.to_vec(), bytes }
}

pub(crate) fn flags(dtype: Dtype, shape: &[usize], data: &[u8]) -> Raw {
    Raw { dtype, shape: shape.to_vec(), bytes: data.to_vec() }
}

/// Numbers between -1 and 1 that look random.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// A directory for the files of one test, where no profile of the user is found.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, tensors: &Tensors) -> PathBuf {
        let views = tensors
            .iter()
            .map(|(name, raw)| (name, TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes).unwrap()));
        let path = self.path(name);
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    /// The names of all files, hidden ones too.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_regard"));
        command.args(args).current_dir(self.directory.path());
        command.env("XDG_DATA_HOME", self.directory.path()).env_remove("REGARD_PROFILE");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output of a run that goes well.
    #[track_caller]
    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The line of standard error of a run that fails with this exit code.
    #[track_caller]
    pub(crate) fn fail(&self, args: &[&str], code: i32) -> String {
        failed(&self.run(args), code)
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The line of standard error of a run that failed with this exit code.
#[track_caller]
pub(crate) fn failed(output: &Output, code: i32) -> String {
    let line = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert_eq!(output.stdout, b"", "{line}");
    assert!(line.starts_with("regard: ") && line.ends_with('\n') && line.matches('\n').count() == 1, "{line:?}");
    line
}

/// A tensor of f32 of a file, with its shape.
pub(crate) fn read(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32);
    let data = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (tensor.shape().to_vec(), data)
}

/// A tensor of a file, with its type, widened.
pub(crate) fn read_half(path: &Path, name: &str) -> (Dtype, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let half = |bytes: &[u8; 2]| match tensor.dtype() {
        Dtype::BF16 => regard::bf16::from_le_bytes(*bytes).to_f32(),
        _ => regard::f16::from_le_bytes(*bytes).to_f32(),
    };
    (tensor.dtype(), tensor.data().as_chunks().0.iter().map(half).collect())
}

/// The names of the tensors of a file.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap();
    let mut names: Vec<String> =
        SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
    names.sort();
    names
}

pub(crate) const BATCH: usize = 2;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const QUERIES: usize = 5;
pub(crate) const KEYS: usize = 7;
pub(crate) const DIM: usize = 8;
pub(crate) const VALUE_DIM: usize = 6;

pub(crate) const Q: [usize; 4] = [BATCH, HEADS, QUERIES, DIM];
pub(crate) const K: [usize; 4] = [BATCH, KV_HEADS, KEYS, DIM];
pub(crate) const V: [usize; 4] = [BATCH, KV_HEADS, KEYS, VALUE_DIM];
pub(crate) const PAIRS: [usize; 4] = [BATCH, HEADS, QUERIES, KEYS];

/// q, k and v of a small problem, and their numbers.
pub(crate) fn qkv() -> (Tensors, [Vec<f32>; 3]) {
    let shapes = [("q", Q), ("k", K), ("v", V)];
    let data = [1, 2, 3].map(|seed| numbers(seed, shapes[seed as usize - 1].1.iter().product()));
    let tensors = shapes.iter().zip(&data).map(|((name, shape), data)| ((*name).to_owned(), f32s(shape, data)));
    (tensors.collect(), data)
}
