//! `regard report`: pages that need nothing else, and what `compare` makes of them. The figures themselves are for a quiet
//! machine.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use roxmltree::{Document, ParsingOptions};
use serde_json::Value;

/// A page in as little time as there is.
fn make(place: &Place, name: &str) -> Value {
    let output = place.run(&["report", name, "--quick", "--seconds", "0", "--json"]);
    // Standard error has the progress.
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The data of a page, by way of what a parser makes of it.
fn data(page: &str) -> Value {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(page, options).unwrap();
    let is_data = |node: &roxmltree::Node<'_, '_>| node.attribute("id") == Some("regard-report");
    let node = document.descendants().find(is_data).unwrap();
    serde_json::from_str(node.text().unwrap()).unwrap()
}

/// Fails unless the page is well-formed and asks for nothing from elsewhere.
fn check(page: &str) {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(page, options).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>"));
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        assert!(!["link", "img", "iframe", "object", "embed", "image", "use", "base"].contains(&name), "{name}");
        if name == "script" {
            assert_eq!(node.attribute("type"), Some("application/json"));
        }
        for attribute in node.attributes() {
            let (key, value) = (attribute.name(), attribute.value());
            assert!(!["src", "href", "srcset", "action"].contains(&key) && !key.starts_with("on"), "{key}");
            assert!(!value.contains("url("), "{value}");
        }
        for text in [node.text(), node.tail()].into_iter().flatten() {
            assert!(!text.contains("NaN") && !text.contains("inf %"), "{name}: {text}");
        }
    }
    for elsewhere in ["http:", "https:", "@import", "url("] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    // A drawing has no place that is no number.
    assert!(!page.contains("=\"NaN") && !page.contains("inf\""));
}

#[test]
fn a_page_has_everything_and_can_be_read_back() {
    let place = Place::new();
    let report = make(&place, "a.html");
    assert_eq!(place.files(), ["a.html"]);
    let page = fs::read_to_string(place.path("a.html")).unwrap();
    check(&page);
    assert_eq!(data(&page), report);

    for heading in [
        "In short",
        "Roofline",
        "Limits of the machine",
        "Prompts",
        "Decoding",
        "Weightings",
        "Block sizes",
        "Noise",
        "To reproduce",
    ] {
        assert!(page.contains(&format!("<h2>{heading}")), "{heading}");
    }
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("regard report OUT.html --quick --seconds 0"));
    assert!(page.matches("<svg").count() >= 8);

    let array = |key: &str| report[key].as_array().unwrap().clone();
    for figure in array("figures") {
        for key in ["gflops", "fraction_of_peak", "kv_gbytes_per_s", "fraction_of_bandwidth", "fraction_of_roof"] {
            assert!(figure[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {figure}");
        }
        // A bf16 product rounds weights; all else is f32.
        assert!(
            figure["max_abs_error"].as_f64().unwrap() < if figure["dtype"] == "bf16" { 3e-2 } else { 1e-4 },
            "{figure}"
        );
        assert!(page.contains(figure["options"].as_str().unwrap()), "{figure}");
    }
    let names: Vec<Value> = array("contests").iter().map(|contest| contest["name"].clone()).collect();
    assert_eq!(names, ["weightings", "levels"]);
    assert_eq!(array("contests")[0]["ways"].as_array().unwrap().len(), 11);
    let heat = &report["heat"];
    let [rows, columns] = ["query_blocks", "key_blocks"].map(|key| heat[key].as_array().unwrap().len());
    let slowdown = heat["slowdown"].as_array().unwrap();
    assert!(slowdown.len() == rows && slowdown.iter().all(|row| row.as_array().unwrap().len() == columns));
    assert_eq!(slowdown.iter().flat_map(|row| row.as_array().unwrap()).filter(|x| **x == 1.0).count(), 1);
    let card = report["machine"]["card"].to_string();
    for row in ["Processor", "Virtual", "Cores", "NUMA nodes", "L1d", "L3", "Features", "System"] {
        assert!(card.contains(row), "{row}");
    }
    assert!(report["limits"]["peaks"].as_array().unwrap().len() >= 2);
    for figure in array("figures") {
        let [low, high] = [0, 1].map(|end| figure["gflops_interval"][end].as_f64().unwrap());
        let gflops = figure["gflops"].as_f64().unwrap();
        assert!(0.0 < low && low <= gflops * 1.0001 && gflops <= high * 1.0001, "{figure}");
    }
    let roofs = &report["roofs"];
    assert_eq!(roofs["memory"].as_array().unwrap().len(), 4);
    assert!(!roofs["compute"].as_array().unwrap().is_empty());
    assert!(report["noise"]["canary"].as_array().unwrap().len() > 10);

    sides(&place, &report);
    hostile(&place, &page, report);
}

/// Two pages side by side, the second of a machine that is twice as fast.
fn sides(place: &Place, report: &Value) {
    let mut faster = report.clone();
    faster["machine"]["name"] = "The <other> & faster one".into();
    for figure in faster["figures"].as_array_mut().unwrap() {
        for field in ["gflops", "fraction_of_roof"] {
            figure[field] = (2.0 * figure[field].as_f64().unwrap()).into();
        }
        for end in figure["gflops_interval"].as_array_mut().unwrap() {
            *end = (2.0 * end.as_f64().unwrap()).into();
        }
    }
    let page = fs::read_to_string(place.path("a.html")).unwrap();
    fs::write(place.path("b.html"), with_data(&page, &faster.to_string().replace('<', "\\u003c"))).unwrap();

    let text = place.succeed(&["report", "compare", "a.html", "b.html"]);
    let mean = text.lines().find(|line| line.starts_with("mean, all cases")).unwrap();
    assert!(mean.ends_with("2.000"), "{mean}");
    assert!(text.contains("B  The <other> & faster one"));
    place.succeed(&["report", "compare", "a.html", "b.html", "--fail-below", "0.5"]);
    place.succeed(&["report", "compare", "a.html", "a.html", "--fail-below", "1"]);
    // Slower on a machine that was slower is no slowdown.
    let mut slower = faster.clone();
    for (figure, old) in slower["figures"].as_array_mut().unwrap().iter_mut().zip(report["figures"].as_array().unwrap())
    {
        figure["fraction_of_roof"] = old["fraction_of_roof"].clone();
    }
    fs::write(place.path("c.html"), with_data(&page, &slower.to_string().replace('<', "\\u003c"))).unwrap();
    place.succeed(&["report", "compare", "c.html", "a.html", "--fail-below", "0.9"]);
    // The table comes all the same.
    let slower = place.run(&["report", "compare", "b.html", "a.html", "--fail-below", "1000"]);
    assert_eq!(slower.status.code(), Some(1));
    assert!(
        stderr(&slower).contains("below 1000: B/A is 0.500 at ") && !slower.stdout.is_empty(),
        "{}",
        stderr(&slower)
    );
    assert!(place.fail(&["report", "compare", "a.html", "b.html", "--fail-below", "x"], 2).contains("--fail-below"));
    let md = place.succeed(&["report", "compare", "a.html", "b.html", "--md"]);
    assert!(md.contains("|---|---:|"));
    let lines = place.succeed(&["report", "compare", "a.html", "b.html", "--json", "--html", "both.html"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), report["figures"].as_array().unwrap().len());
    assert!(lines.iter().all(|line| line["ratios"] == serde_json::json!([1.0, 2.0])));
    for line in &lines {
        let [low, high] = [0, 1].map(|end| line["intervals"][1][end].as_f64().unwrap());
        assert!(low <= 2.0 && 2.0 <= high, "{line}");
    }
    let both = fs::read_to_string(place.path("both.html")).unwrap();
    check(&both);
    assert!(both.contains("The &lt;other&gt; &amp; faster one") && !both.contains("<other>"));
}

/// A page with other data.
fn with_data(page: &str, json: &str) -> String {
    let tag = "id=\"regard-report\">";
    let (before, rest) = page.split_once(tag).unwrap();
    let (_, after) = rest.split_once("</script>").unwrap();
    format!("{before}{tag}{json}</script>{after}")
}

/// Files that are no reports.
fn hostile(place: &Place, page: &str, report: Value) {
    let bad = |name: &str, contents: &[u8], why: &str| {
        fs::write(place.path(name), contents).unwrap();
        let error = place.fail(&["report", "compare", "a.html", name], 3);
        assert!(error.contains(why) && error.contains(name), "{error}");
    };
    bad("empty.html", b"", "no page that `regard report` made");
    bad("bytes.html", &[0xff, 0xfe, 0], "no text");
    bad("cut.html", &page.as_bytes()[..page.len() - 200], "no page that `regard report` made");
    bad("json.html", with_data(page, "{").as_bytes(), "no JSON");
    bad("kind.html", with_data(page, "{\"kind\":\"recipe\"}").as_bytes(), "another kind");
    let mut newer = report.clone();
    newer["schema"] = 99.into();
    bad("newer.html", with_data(page, &newer.to_string()).as_bytes(), "version 99");
    let mut part = report.clone();
    part["roofs"].as_object_mut().unwrap().remove("memory");
    bad("part.html", with_data(page, &part.to_string()).as_bytes(), "incomplete");
    let mut other = report;
    other["figures"] = Value::Array(Vec::new());
    bad_in_common(place, &with_data(page, &other.to_string()));
    assert!(place.fail(&["report", "compare", "a.html", "absent.html"], 3).contains("absent.html"));
    assert!(place.fail(&["report", "compare", "a.html"], 2).contains("REPORT.html"));
}

fn bad_in_common(place: &Place, page: &str) {
    fs::write(place.path("none.html"), page).unwrap();
    assert!(place.fail(&["report", "compare", "a.html", "none.html"], 3).contains("no case in common"));
}

#[test]
fn bad_places_are_found_before_anything_is_measured() {
    let place = Place::new();
    fs::create_dir(place.path("directory")).unwrap();
    assert!(place.fail(&["report", "directory"], 5).contains("not a regular file"));
    assert!(place.fail(&["report", "absent/page.html"], 5).contains("directory does not exist"));
    assert!(place.fail(&["report"], 2).contains("OUT.html"));
    assert!(place.fail(&["report", "x.html", "--seconds", "-1"], 2).contains("--seconds"));
    assert!(!Path::new(&place.path("x.html")).exists());
}
