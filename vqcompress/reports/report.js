(function () {
  "use strict";
  const root = document.getElementById("viewer");
  if (!root) return;
  const find = (name) => root.querySelector(`[data-part="${name}"]`);
  const stage = find("stage"), before = find("before"), after = find("after"), heat = find("heat");
  const slider = find("slider"), image = find("image"), variant = find("variant"), said = find("said");
  const full = JSON.parse(document.getElementById("full-size").textContent);
  const thumbs = new Map();
  document.querySelectorAll(".gallery img").forEach((each) => {
    thumbs.set(`${each.dataset.label} ${each.dataset.place}`, each.src);
  });
  const source = (label, place) => (full[label] ? full[label][place] : thumbs.get(`${label} ${place}`));
  let timer = null;

  function mode() { return root.querySelector("input[name=mode]:checked").value; }

  function split() {
    const percent = Number(slider.value);
    stage.style.setProperty("--split", `${percent}%`);
    slider.setAttribute("aria-valuetext", `${percent} % original, ${100 - percent} % ${variant.value}`);
  }

  async function difference() {
    await Promise.all([before.decode(), after.decode()]);
    const width = before.naturalWidth, height = before.naturalHeight;
    const pixels = (picture) => {
      const canvas = document.createElement("canvas");
      canvas.width = width; canvas.height = height;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(picture, 0, 0);
      return context.getImageData(0, 0, width, height);
    };
    const a = pixels(before).data, b = pixels(after).data;
    heat.width = width; heat.height = height;
    const context = heat.getContext("2d"), drawn = context.createImageData(width, height);
    let sum = 0, largest = 0;
    for (let at = 0; at < a.length; at += 4) {
      let d = 0;
      for (let c = 0; c < 3; c++) {
        const e = Math.abs(a[at + c] - b[at + c]);
        sum += e * e; largest = Math.max(largest, e); d = Math.max(d, e);
      }
      const t = Math.min(1, d / 32);
      drawn.data.set([255 * Math.min(1, 1.6 * t), 255 * Math.max(0, 1.6 * t - 0.6), 110 * Math.sin(Math.PI * t), 255], at);
    }
    context.putImageData(drawn, 0, 0);
    const psnr = sum ? 10 * Math.log10((255 * 255 * 3 * width * height) / sum) : Infinity;
    said.textContent = `${psnr === Infinity ? "∞" : psnr.toFixed(1)} dB in 8 bits; largest difference ${largest} of 255. ` +
      "Black is equal, yellow 32 of 255 or more.";
  }

  function show() {
    const now = mode();
    stage.dataset.mode = now;
    stage.classList.remove("swapped");
    clearInterval(timer);
    slider.disabled = now !== "slider";
    if (now === "flicker") timer = setInterval(() => stage.classList.toggle("swapped"), 700);
    said.textContent = now === "flicker" ? "The two alternate." : "";
    if (now === "difference") difference();
  }

  function load() {
    before.src = source("original", image.value);
    after.src = source(variant.value, image.value);
    after.alt = `${variant.value}: ${image.selectedOptions[0].text}`;
    split(); show();
  }

  function drag(event) {
    if (mode() !== "slider" || (event.type === "pointermove" && !event.buttons)) return;
    const box = stage.getBoundingClientRect();
    slider.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    split();
    if (event.type === "pointerdown") { stage.setPointerCapture(event.pointerId); slider.focus({ preventScroll: true }); event.preventDefault(); }
  }

  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  slider.addEventListener("input", split);
  image.addEventListener("change", load);
  variant.addEventListener("change", load);
  root.querySelectorAll("input[name=mode]").forEach((each) => each.addEventListener("change", show));
  root.hidden = false;
  load();
})();
