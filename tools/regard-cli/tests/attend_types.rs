//! `regard attend` on other element types than f32, and on packed and paged sequences, gives what the library gives.

mod common;

use common::*;
use regard::{
    Align, Attention, Execution, Keys, Pages, Plan, Problem, Queries, Setup, Tensor, TensorMut, View, ViewMut, bf16,
    f16, quantise,
};
use safetensors::Dtype;

/// The output of the library, as f32.
fn library(problem: &Problem<'_>) -> Vec<f32> {
    let plan = Plan::new(problem, &Setup::detect().unwrap().without_profile());
    let shape = problem.shape();
    let mut out = vec![0.0; shape.rows() * shape.value_dim];
    let mut workspace = vec![0.0; plan.workspace_len(1)];
    let view = ViewMut::bhsd(&mut out, shape.out()).unwrap();
    plan.run(problem, view, None, &mut workspace, Execution::Serial).unwrap();
    out
}

fn view(data: &[f32], shape: [usize; 4]) -> View<'_, f32> {
    View::bhsd(data, shape).unwrap()
}

/// The tool on these tensors.
#[track_caller]
fn tool(place: &Place, tensors: &Tensors, args: &str) -> Vec<f32> {
    place.write("in", tensors);
    let args = args.split_whitespace();
    place.succeed(&["attend", "in", "out"].into_iter().chain(args).collect::<Vec<_>>());
    read(&place.path("out"), "out").1
}

fn qkv_of(dtype: Dtype) -> (Tensors, [Vec<f32>; 3]) {
    let (_, data) = qkv();
    let raw = |(name, shape): (&str, [usize; 4]), data: &[f32]| (name.to_owned(), halves(dtype, &shape, data));
    let tensors = [("q", Q), ("k", K), ("v", V)].into_iter().zip(&data).map(|(named, data)| raw(named, data)).collect();
    (tensors, data)
}

#[test]
fn half_precision() {
    let place = Place::new();
    let (f32s, data) = qkv();
    let [q, k, v] = &data;
    let shapes = [Q, K, V];

    let rounded = data.clone().map(|data| data.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>());
    let tensors = [0, 1, 2].map(|i| Tensor::from(View::bhsd(&rounded[i], shapes[i]).unwrap()));
    let [tq, tk, tv] = tensors;
    let expected = library(&Problem::new(&Attention::softmax(), tq, tk, tv).unwrap());
    assert_eq!(tool(&place, &qkv_of(Dtype::F16).0, ""), expected);
    assert_eq!(tool(&place, &f32s, "--dtype f16"), expected);

    let rounded = data.clone().map(|data| data.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>());
    let tensors = [0, 1, 2].map(|i| Tensor::from(View::bhsd(&rounded[i], shapes[i]).unwrap()));
    let [tq, tk, tv] = tensors;
    let problem = |options: &Attention<'_>| library(&Problem::new(options, tq, tk, tv).unwrap());
    assert_eq!(tool(&place, &qkv_of(Dtype::BF16).0, ""), problem(&Attention::softmax()));
    for (args, native) in [("--dtype bf16 --no-native-half", false), ("--dtype bf16 --native-half", true)] {
        assert_eq!(tool(&place, &f32s, args), problem(&Attention::softmax().native_half(native)));
    }

    // Widened again, and of two types.
    let exact = library(&Problem::new(&Attention::softmax(), view(q, Q), view(k, K), view(v, V)).unwrap());
    let widened = tool(&place, &qkv_of(Dtype::F16).0, "--dtype f32");
    assert!(widened.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 2e-3));
    let mut mixed = qkv_of(Dtype::BF16).0;
    mixed.insert("q".to_owned(), f32s["q"].clone());
    let expected = library(&Problem::new(&Attention::softmax(), view(q, Q), tk, tv).unwrap());
    assert_eq!(tool(&place, &mixed, ""), expected);
}

#[test]
fn outputs_of_other_types() {
    let place = Place::new();
    for (dtype, name) in [(Dtype::F16, "f16"), (Dtype::BF16, "bf16")] {
        let (tensors, data) = qkv_of(dtype);
        place.write("in", &tensors);
        place.succeed(&["attend", "in", "out", "--out-dtype", name]);
        let (found, out) = read_half(&place.path("out"), "out");
        assert_eq!(found, dtype);
        let expected = match dtype {
            Dtype::F16 => out_of(&data, f16::from_f32, |out| out.map(f16::to_f32)),
            _ => out_of(&data, bf16::from_f32, |out| out.map(bf16::to_f32)),
        };
        assert_eq!(out, expected);
        let json = place.succeed(&["attend", "in", "out", "--out-dtype", name, "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!([&json["q_dtype"], &json["kv_dtype"], &json["out_dtype"]], [name; 3]);
        let text = place.succeed(&["attend", "in", "out", "--out-dtype", name]);
        assert!(text.ends_with(&format!("out [2, 4, 5, 6] {name}\n")), "{text}");
    }
}

/// The output of the library in the type of its inputs, widened.
fn out_of<T: Copy + Default>(
    data: &[Vec<f32>; 3],
    narrow: fn(f32) -> T,
    widen: fn(std::vec::IntoIter<T>) -> Widened<T>,
) -> Vec<f32>
where
    for<'a> Tensor<'a>: From<View<'a, T>>,
    for<'a> TensorMut<'a>: From<ViewMut<'a, T>>,
{
    let rounded = data.clone().map(|data| data.into_iter().map(narrow).collect::<Vec<_>>());
    let [q, k, v] = &rounded;
    let [q, k, v] = [(q, Q), (k, K), (v, V)].map(|(data, shape)| Tensor::from(View::bhsd(data, shape).unwrap()));
    let problem = Problem::new(&Attention::softmax(), q, k, v).unwrap();
    let plan = Plan::new(&problem, &Setup::detect().unwrap().without_profile());
    let mut out = vec![T::default(); problem.shape().out().iter().product()];
    let mut workspace = vec![0.0; plan.workspace_len(1)];
    let view = ViewMut::bhsd(&mut out, problem.shape().out()).unwrap();
    plan.run(&problem, view, None, &mut workspace, Execution::Serial).unwrap();
    widen(out.into_iter()).collect()
}

type Widened<T> = std::iter::Map<std::vec::IntoIter<T>, fn(T) -> f32>;

#[test]
fn bytes_with_scales() {
    let place = Place::new();
    let (f32s_in, [q, k, v]) = qkv();
    let [k8, v8] = [quantise(view(&k, K)), quantise(view(&v, V))];
    let expected = library(&Problem::new(&Attention::softmax(), view(&q, Q), k8.tensor(), v8.tensor()).unwrap());
    assert_eq!(tool(&place, &f32s_in, "--dtype int8"), expected);
    assert_eq!(tool(&place, &f32s_in, "--dtype int8 --paged 2"), expected);
    let mut tensors = f32s_in.clone();
    for (name, scale, shape, rows) in [("k", "k_scale", K, &k8), ("v", "v_scale", V, &v8)] {
        tensors.insert(name.to_owned(), i8s(&shape, &rows.data));
        let last = if name == "k" { &shape[..3] } else { &[shape[0], shape[1], shape[2], 1][..] };
        tensors.insert(scale.to_owned(), f32s(last, &rows.scales));
    }
    assert_eq!(tool(&place, &tensors, ""), expected);
    assert_eq!(tool(&place, &tensors, "--dtype int8"), expected);
    // Multiplied out, which rounds in another place.
    let widened = tool(&place, &tensors, "--dtype f32");
    assert!(widened.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 3e-5));
    // One scale for all.
    tensors.insert("k_scale".to_owned(), f32s(&[1, 1, 1], &[0.01]));
    tool(&place, &tensors, "");
    tool(&place, &tensors, "--paged 4");

    let mut wrong = tensors.clone();
    wrong.insert("k_scale".to_owned(), f32s(&[2, 2, 6], &[0.0; 24]));
    place.write("in", &wrong);
    assert!(
        place.fail(&["attend", "in", "out2"], 3).contains("k_scale has shape [2, 2, 6], but [2, 2, 7] is expected")
    );
    wrong.remove("k_scale");
    place.write("in", &wrong);
    assert!(place.fail(&["attend", "in", "out2"], 3).contains("tensor k_scale is missing"));
    let mut mixed = f32s_in;
    mixed.insert("v".to_owned(), halves(Dtype::F16, &V, &v));
    place.write("in", &mixed);
    assert!(place.fail(&["attend", "in", "out2"], 3).contains("v is f16, but must be f32"));
    assert!(place.fail(&["attend", "in", "out2", "--dtype", "f16", "--out-dtype", "bf16"], 3).contains("out is bf16"));
}

/// Packed q, k and v of sequences with these queries and keys: `[rows, heads, columns]`.
fn packed(queries: usize, keys: usize) -> (Tensors, [Vec<f32>; 3]) {
    let shapes = [[queries, HEADS, DIM], [keys, KV_HEADS, DIM], [keys, KV_HEADS, VALUE_DIM]];
    let data = [1, 2, 3].map(|seed| numbers(seed, shapes[seed as usize - 1].iter().product()));
    let named = ["q", "k", "v"].iter().zip(shapes).zip(&data);
    (named.map(|((name, shape), data)| ((*name).to_owned(), f32s(&shape, data))).collect(), data)
}

/// The output of the library in the order of the packed tensors.
fn of_packed(data: &[Vec<f32>; 3], options: &Attention<'_>, queries: &[usize], keys: &[usize]) -> Vec<f32> {
    let [q, k, v] = data;
    let thd = |data, heads, columns| View::thd(data, [data.len() / heads / columns, heads, columns]).unwrap();
    let (q, k, v) = (thd(q, HEADS, DIM), thd(k, KV_HEADS, DIM), thd(v, KV_HEADS, VALUE_DIM));
    let problem = Problem::ragged(options, q, Queries::Packed(queries), k, v, Keys::Packed(keys)).unwrap();
    let out = library(&problem);
    let rows = q.shape()[2];
    let index = (0..rows).flat_map(|row| (0..HEADS).map(move |head| head * rows + row));
    index.flat_map(|row| out[row * VALUE_DIM..][..VALUE_DIM].to_vec()).collect()
}

#[test]
fn packed_sequences() {
    let place = Place::new();
    let (tensors, data) = packed(15, 15);
    let causal = Attention::softmax().causal(Align::BottomRight);
    let expected = of_packed(&data, &causal, &[0, 4, 4, 15], &[0, 4, 4, 15]);
    for more in ["", "--layout thd", "--threads 2", "--paged 3"] {
        let out = tool(&place, &tensors, &format!("--varlen 4,0,11 --causal bottom-right {more}"));
        assert_eq!(out, expected, "{more}");
    }
    let (shape, _) = read(&place.path("out"), "out");
    assert_eq!(shape, [15, HEADS, VALUE_DIM]);

    // Other queries than keys, as the file says.
    let (mut tensors, data) = packed(5, 15);
    tensors.insert("q_offsets".to_owned(), i64s(&[4], &[0, 1, 3, 4]));
    tensors.insert("kv_offsets".to_owned(), i32s(&[4], &[0, 4, 6, 15]));
    let expected = of_packed(&data, &causal, &[0, 1, 3, 4], &[0, 4, 6, 15]);
    assert_eq!(tool(&place, &tensors, "--causal bottom-right"), expected);
    assert_eq!(tool(&place, &tensors, "--causal bottom-right --paged 1"), expected);
    let json = place.succeed(&["attend", "in", "out", "--lse", "--json", "--split", "never"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!([&json["batch"], &json["queries"], &json["keys"], &json["packed_rows"]], [3, 2, 9, 5]);
    assert_eq!(json["layout"], "thd");
    let (shape, lse) = read(&place.path("out"), "lse");
    assert_eq!(shape, [HEADS, 5]);
    // The last row belongs to no sequence.
    assert!(lse.chunks(5).all(|rows| rows[..4].iter().all(|lse| lse.is_finite()) && rows[4] == f32::NEG_INFINITY));
    assert!(read(&place.path("out"), "out").1[4 * HEADS * VALUE_DIM..].iter().all(|x| *x == 0.0));

    for (args, part) in [
        ("--varlen 2,3", "q_offsets and --varlen exclude each other"),
        ("--layout bhsd", "has shape [5, 4, 8], but 4 dimensions are expected"),
    ] {
        let args: Vec<&str> = ["attend", "in", "out2"].into_iter().chain(args.split(' ')).collect();
        assert!(place.fail(&args, 3).contains(part), "{part}");
    }
    for (offsets, part) in [([0, 1, 9, 4], "q_offsets has 9 at [2], but 0 to 5"), ([0, 3, 1, 4], "must be from 3 to 5")]
    {
        tensors.insert("q_offsets".to_owned(), i64s(&[4], &offsets));
        place.write("in", &tensors);
        for more in [&[][..], &["--paged", "2"]] {
            let line = place.fail(&[&["attend", "in", "out2"], more].concat(), 3);
            assert!(line.contains(part), "{part:?} in {line}");
        }
    }
}

#[test]
fn pages_of_the_file() {
    let place = Place::new();
    let (mut tensors, data) = packed(4, 15);
    // Three sequences of 4, 2 and 9 keys, on pages of 3 rows; page 4 is no one's.
    let (lengths, table) = ([4_usize, 2, 9], [[5, 0, -1], [3, -1, 99], [1, 6, 2]]);
    let mut rows = [usize::MAX; 7 * 3];
    let mut next = 0;
    for (length, pages) in lengths.iter().zip(table) {
        for key in 0..*length {
            rows[pages[key / 3] as usize * 3 + key % 3] = next;
            next += 1;
        }
    }
    let mut paged = Vec::new();
    for (name, data, columns) in [("k", &data[1], DIM), ("v", &data[2], VALUE_DIM)] {
        let width = KV_HEADS * columns;
        let row = |row: &usize| {
            data.get(row.saturating_mul(width)..).map_or(vec![f32::NAN; width], |row| row[..width].to_vec())
        };
        let all: Vec<f32> = rows.iter().flat_map(row).collect();
        tensors.insert(name.to_owned(), f32s(&[7, 3, KV_HEADS, columns], &all));
        paged.push(all);
    }
    tensors.insert("q_offsets".to_owned(), i64s(&[4], &[0, 1, 3, 4]));
    tensors.insert("page_table".to_owned(), i32s(&[3, 3], &table.concat()));
    tensors.insert("kv_lengths".to_owned(), i64s(&[3], &lengths.map(|length| length as i64)));
    let expected = of_packed(&data, &Attention::softmax(), &[0, 1, 3, 4], &[0, 4, 6, 15]);
    assert_eq!(tool(&place, &tensors, ""), expected);

    // The library on the same pages.
    let shape = |columns| [7, 3, KV_HEADS, columns];
    let entries = table.concat().iter().map(|page| u32::try_from(*page).unwrap_or(u32::MAX)).collect::<Vec<_>>();
    let pages = Pages { table: &entries, pages_per_sequence: 3, lengths: &lengths };
    let problem = Problem::ragged(
        &Attention::softmax(),
        View::thd(&data[0], [4, HEADS, DIM]).unwrap(),
        Queries::Packed(&[0, 1, 3, 4]),
        View::bshd(&paged[0], shape(DIM)).unwrap(),
        View::bshd(&paged[1], shape(VALUE_DIM)).unwrap(),
        Keys::Paged(pages),
    );
    let same = library(&problem.unwrap());
    let index = (0..4).flat_map(|row| (0..HEADS).map(move |head| head * 4 + row));
    assert_eq!(index.flat_map(|row| same[row * VALUE_DIM..][..VALUE_DIM].to_vec()).collect::<Vec<_>>(), expected);

    let fails = |tensors: &Tensors, args: &[&str], part: &str| {
        place.write("in", tensors);
        let line = place.fail(&[&["attend", "in", "out2"], args].concat(), 3);
        assert!(line.contains(part), "{part:?} in {line}");
    };
    fails(&tensors, &["--paged", "4"], "page_table and --paged exclude each other");
    let with = |name: &str, raw: Raw| {
        let mut tensors = tensors.clone();
        tensors.insert(name.to_owned(), raw);
        tensors
    };
    fails(&with("kv_lengths", i64s(&[3], &[4, 2, 10])), &[], "kv_lengths has 10 at [2], but 0 to 9");
    fails(&with("kv_lengths", i64s(&[3], &[4, 4, 9])), &[], "page 1 of sequence 1 is 4294967295");
    fails(&with("page_table", i32s(&[9], &[0; 9])), &[], "page_table has shape [9], but [3, pages] is expected");
    fails(&with("kv_offsets", i64s(&[4], &[0, 4, 6, 15])), &[], "page_table and kv_offsets exclude each other");
    let mut without = tensors.clone();
    without.remove("kv_lengths");
    fails(&without, &[], "tensor kv_lengths is missing");
}

#[test]
fn padded_batches_move_to_pages() {
    let place = Place::new();
    let (mut tensors, [q, k, v]) = qkv();
    tensors.insert("kv_lengths".to_owned(), i64s(&[BATCH], &[6, 3]));
    let options = Attention::softmax().key_lengths(&[6, 3]).causal(Align::BottomRight);
    let expected = library(&Problem::new(&options, view(&q, Q), view(&k, K), view(&v, V)).unwrap());
    for rows in ["1", "4", "7", "100"] {
        assert_eq!(tool(&place, &tensors, &format!("--causal bottom-right --paged {rows}")), expected, "{rows}");
    }
    assert!(place.fail(&["attend", "in", "out2", "--paged", "70000"], 2).contains("from 1 to 65536"));
    assert!(place.fail(&["attend", "in", "out2", "--layout", "thd"], 3).contains("3 dimensions are expected"));
    assert!(place.fail(&["attend", "in", "out2", "--varlen", "1,2", "--layout", "bhsd"], 3).contains("batch"));
}

#[test]
fn types_of_tensors_without_elements() {
    let place = Place::new();
    for (queries, keys, dim, value_dim) in [(0, 7, 8, 6), (5, 0, 8, 6), (5, 7, 0, 6), (5, 7, 8, 0)] {
        let mut tensors = Tensors::new();
        for (name, shape) in [("q", [2, 4, queries, dim]), ("k", [2, 2, keys, dim]), ("v", [2, 2, keys, value_dim])] {
            tensors.insert(name.to_owned(), f32s(&shape, &numbers(1, shape.iter().product())));
        }
        for more in
            ["--dtype int8", "--dtype bf16 --out-dtype bf16", "--dtype f16", "--paged 3", "--dtype int8 --paged 3"]
        {
            place.write("in", &tensors);
            let args = ["attend", "in", "out"].into_iter().chain(more.split(' '));
            place.succeed(&args.collect::<Vec<_>>());
        }
    }
}
