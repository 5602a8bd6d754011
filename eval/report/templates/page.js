"use strict";
const GAIN = 5; // of the residual

function gallery(section) {
  const content = JSON.parse(section.querySelector(".content").textContent);
  const find = (name) => section.querySelector("." + name);
  const { width, height, classes, items } = content;
  const name = (label) => classes[label] ?? "class " + label;
  const images = [...new Set(items.map((item) => item.index))];
  const conditions = [...new Set(items.map((item) => item.condition))];
  const strip = document.createElement("canvas");
  strip.width = width;
  let item = null;

  const option = (select, text, value) => {
    const made = document.createElement("option");
    made.textContent = text;
    made.value = value;
    select.append(made);
  };
  for (const index of images) {
    const label = items.find((one) => one.index === index).label;
    option(find("image"), `${index}: ${name(label)}`, index);
  }
  for (const condition of conditions) option(find("condition"), condition, condition);
  for (const kind of ["clean", "input", "reconstruction", "residual"]) {
    find(kind).width = width;
    find(kind).height = height;
  }
  find("gain").textContent = `times ${GAIN}`;

  const pixels = (place) => strip.getContext("2d").getImageData(0, place * height, width, height);
  const put = (kind, data) => find(kind).getContext("2d").putImageData(data, 0, 0);

  function read(place, seen, label) {
    const right = seen.prediction === label;
    find(place).textContent = `read as ${name(seen.prediction)}, ${(100 * seen.probability).toFixed(0)} %`;
    find(place).className = `${place} ${right ? "right" : "wrong"}`;
    return find(place).textContent + (right ? "" : ", wrong");
  }

  function show() {
    const number = Number(find("slider").value);
    const frame = item.frames[number];
    const reconstruction = pixels(number + 2);
    const residual = pixels(1);
    for (let k = 0; k < residual.data.length; k++) {
      if (k % 4 !== 3) residual.data[k] = 127.5 + GAIN * (residual.data[k] - reconstruction.data[k]); // clamped
    }
    put("reconstruction", reconstruction);
    put("residual", residual);
    find("iteration").textContent = `${frame.iteration} of ${item.frames.at(-1).iteration}`;
    find("psnr").textContent = frame.psnr === null ? "equal" : `${frame.psnr.toFixed(2)} dB`;
    find("ssim").textContent = frame.ssim.toFixed(3);
    find("rms").textContent = frame.residual.toFixed(4);
    const said = read("read", frame, item.label);
    find("slider").setAttribute("aria-valuetext", `iteration ${frame.iteration}, ${said}`);
  }

  function choose() {
    const [index, condition] = [Number(find("image").value), find("condition").value];
    const chosen = items.find((one) => one.index === index && one.condition === condition);
    const picture = new Image();
    picture.onload = () => {
      item = chosen;
      strip.height = picture.height;
      strip.getContext("2d", { willReadFrequently: true }).drawImage(picture, 0, 0);
      put("clean", pixels(0));
      put("input", pixels(1));
      find("true").textContent = `is ${name(item.label)}`;
      read("read-input", item.input, item.label);
      read("answer", item.answer, item.label);
      find("slider").max = item.frames.length - 1;
      show();
      section.dataset.shown = `${index} ${condition}`;
    };
    picture.src = chosen.strip;
  }

  find("slider").value = 0;
  find("slider").addEventListener("input", () => item && show());
  find("image").addEventListener("change", choose);
  find("condition").addEventListener("change", choose);
  choose();
}

document.querySelectorAll(".gallery").forEach(gallery);
