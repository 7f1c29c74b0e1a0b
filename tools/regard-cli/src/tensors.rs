//! Tensors from and to safetensors files.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regard::{bf16, f16};
use regard_tuner::inputs::Elements;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use tempfile::NamedTempFile;

use crate::error::CliError;

/// Elements with their shape.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<T> {
    pub(crate) data: Vec<T>,
    pub(crate) shape: Vec<usize>,
}

/// The bytes of a safetensors file.
#[derive(Debug)]
pub(crate) struct File {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// A safetensors file whose header makes sense.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    used: BTreeSet<&'static str>,
}

impl File {
    /// Reads the whole file.
    pub(crate) fn read(path: &Path) -> Result<Self, CliError> {
        let bytes = fs::read(path).map_err(|error| CliError::Read { path: path.to_owned(), error })?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// Looks into the header.
    pub(crate) fn reader(&self) -> Result<Reader<'_>, CliError> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| {
            let cause = self.short_of().unwrap_or_else(|| error.to_string());
            CliError::Input(format!("{} is not a safetensors file: {cause}", self.path.display()))
        });
        Ok(Reader { path: &self.path, tensors: tensors?, used: BTreeSet::new() })
    }

    /// Says how long the file would have to be, if its length is what is wrong.
    fn short_of(&self) -> Option<String> {
        let found = self.bytes.len();
        let Some((header, rest)) = self.bytes.split_first_chunk::<8>() else {
            return Some(format!("it has {found} bytes, and the length of the header alone takes 8"));
        };
        let header = usize::try_from(u64::from_le_bytes(*header)).ok()?;
        let Some(text) = rest.get(..header) else {
            return Some(format!("it has {found} bytes, but by its first 8 the header alone takes {header} more"));
        };
        let metadata: Metadata = serde_json::from_slice(text).ok()?;
        let expected = 8 + header + metadata.data_len();
        (expected != found).then(|| format!("it has {found} bytes, but its header describes {expected}"))
    }
}

impl<'a> Reader<'a> {
    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// A tensor of f32.
    pub(crate) fn f32(&mut self, name: &'static str) -> Result<Tensor<f32>, CliError> {
        let (bytes, shape) = self.typed(name, &[Dtype::F32])?;
        // The file does not align its data.
        let data = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok(Tensor { data, shape })
    }

    /// A tensor of f32, f16, bf16, or of i8 if `quantised`, which are given no scales yet.
    pub(crate) fn numbers(&mut self, name: &'static str, quantised: bool) -> Result<(Elements, Vec<usize>), CliError> {
        let dtypes = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8];
        let (bytes, shape) = self.typed(name, &dtypes[..if quantised { 4 } else { 3 }])?;
        let elements = match self.dtype(name) {
            Some(Dtype::F16) => Elements::F16(bytes.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x)).collect()),
            Some(Dtype::BF16) => Elements::Bf16(bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x)).collect()),
            Some(Dtype::I8) => Elements::Int8(bytes.iter().map(|x| *x as i8).collect(), Vec::new()),
            _ => Elements::F32(bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()),
        };
        Ok((elements, shape))
    }

    /// A tensor of whole numbers.
    pub(crate) fn whole(&mut self, name: &'static str) -> Result<Tensor<i64>, CliError> {
        let (bytes, shape) = self.typed(name, &[Dtype::I64, Dtype::I32])?;
        let data = match self.dtype(name) {
            Some(Dtype::I32) => bytes.as_chunks().0.iter().map(|x| i64::from(i32::from_le_bytes(*x))).collect(),
            _ => bytes.as_chunks().0.iter().map(|x| i64::from_le_bytes(*x)).collect(),
        };
        Ok(Tensor { data, shape })
    }

    /// A tensor of truth values: bool, or u8 where anything but 0 is true.
    pub(crate) fn flags(&mut self, name: &'static str) -> Result<Tensor<u8>, CliError> {
        let (bytes, shape) = self.typed(name, &[Dtype::BOOL, Dtype::U8])?;
        Ok(Tensor { data: bytes.to_vec(), shape })
    }

    /// The names of tensors that nobody asked for.
    pub(crate) fn unused(&self) -> Vec<String> {
        let names = self.names();
        names.into_iter().filter(|name| !self.used.contains(name.as_str())).collect()
    }

    /// An error about a tensor of this file.
    pub(crate) fn error(&self, name: &str, what: &str) -> CliError {
        CliError::Input(format!("{}: tensor {name} {what}", self.path.display()))
    }

    fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.tensor(name).ok().map(|tensor| tensor.dtype())
    }

    fn typed(&mut self, name: &'static str, dtypes: &[Dtype]) -> Result<(&'a [u8], Vec<usize>), CliError> {
        let tensor = self.tensors.tensor(name).map_err(|error| self.missing(name, &error))?;
        if !dtypes.contains(&tensor.dtype()) {
            let expected: Vec<String> = dtypes.iter().map(ToString::to_string).collect();
            let what = format!("has type {}, but {} is expected", tensor.dtype(), expected.join(" or "));
            return Err(self.error(name, &what));
        }
        self.used.insert(name);
        Ok((tensor.data(), tensor.shape().to_vec()))
    }

    fn missing(&self, name: &str, error: &SafeTensorError) -> CliError {
        if !matches!(error, SafeTensorError::TensorNotFound(_)) {
            return self.error(name, &error.to_string());
        }
        let names = self.names();
        let has = if names.is_empty() { "no tensors at all".to_owned() } else { list(&names) };
        self.error(name, &format!("is missing; the file has {has}"))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors.names().into_iter().map(str::to_owned).collect();
        names.sort_unstable();
        names
    }
}

/// The first names, and how many more there are.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() <= SHOWN { shown } else { format!("{shown} and {} more", names.len() - SHOWN) }
}

/// A file to be written: at its path there is the old file or the new one, and nothing in between.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    temporary: NamedTempFile,
}

impl Writer {
    /// Makes sure that the file can be written, and writes nothing yet.
    pub(crate) fn new(path: &Path) -> Result<Self, CliError> {
        let refused = |error| CliError::Write { path: path.to_owned(), error };
        // What a link points to is replaced, not the link.
        let target = if path.exists() { path.canonicalize().map_err(refused)? } else { path.to_owned() };
        if target.exists() && !target.is_file() {
            return Err(refused(std::io::Error::other("it is not a regular file")));
        }
        if target.file_name().is_none() {
            return Err(refused(std::io::Error::other("it is not the name of a file")));
        }
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".regard-");
        // As for any new file: the permissions that the user's mask leaves. Temporary files are private otherwise.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temporary = builder.tempfile_in(directory).map_err(|error| refused(bare(error)))?;
        Ok(Self { path: target, temporary })
    }

    /// Writes tensors with their names and shapes, and puts the file in its place.
    pub(crate) fn write(self, tensors: &[(&str, Elements, Vec<usize>)]) -> Result<(), CliError> {
        let views = tensors.iter().map(|(name, elements, shape)| (*name, Stored { elements, shape }));
        let bytes = safetensors::serialize(views, None)
            .map_err(|error| CliError::Failed(format!("cannot write {}: {error}", self.path.display())))?;
        self.write_bytes(&bytes)
    }

    /// Writes bytes, and puts the file in its place.
    pub(crate) fn write_bytes(mut self, bytes: &[u8]) -> Result<(), CliError> {
        use std::io::Write;
        let file = self.temporary.as_file_mut();
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(CliError::writing(&self.path))?;
        let persisted = self.temporary.persist(&self.path);
        persisted.map(drop).map_err(|error| CliError::Write { path: self.path, error: error.error })
    }
}

/// The reason alone: the temporary file's name, which the error was given besides, says nothing to the user.
fn bare(error: std::io::Error) -> std::io::Error {
    use std::io::{Error, ErrorKind};
    match error.kind() {
        ErrorKind::NotFound => Error::other("its directory does not exist"),
        ErrorKind::NotADirectory => Error::other("its directory is not one"),
        kind => Error::from(kind),
    }
}

/// A tensor as a file holds it.
struct Stored<'a> {
    elements: &'a Elements,
    shape: &'a [usize],
}

impl safetensors::View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.elements {
            Elements::F32(_) => Dtype::F32,
            Elements::F16(_) => Dtype::F16,
            Elements::Bf16(_) => Dtype::BF16,
            Elements::Int8(..) => Dtype::I8,
        }
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes: Vec<u8> = match self.elements {
            Elements::F32(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Elements::F16(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Elements::Bf16(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Elements::Int8(data, _) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        bytes.into()
    }

    fn data_len(&self) -> usize {
        match self.elements {
            Elements::F32(data) => size_of_val(&data[..]),
            Elements::F16(data) => size_of_val(&data[..]),
            Elements::Bf16(data) => size_of_val(&data[..]),
            Elements::Int8(data, _) => data.len(),
        }
    }
}
