// Draws the figures of the page with plotly, and lets a curve and its video move each other.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const signed = (x, digits = 2) => x.toFixed(digits).replace("-", "−");
function bytes(base64) {
  const text = atob(base64), found = new Uint8Array(text.length);
  for (let i = 0; i < found.length; i++) found[i] = text.charCodeAt(i);
  return found;
}
const breath = () => new Promise((go) => setTimeout(go)); // in which the page can be read and scrolled

// ------------------------------------------------------------------ figures
const styled = (figure) => {
  const style = getComputedStyle(document.documentElement);
  return JSON.parse(JSON.stringify(figure).replace(/var\((--[a-z]+)\)/g, (_, name) => style.getPropertyValue(name).trim()));
};
function draw(box) {
  const { data: traces, layout } = styled(data.figures[box.dataset.figure]);
  const still = Boolean(box.closest(".scrub")); // a trace has a cursor of its own
  return Plotly.react(box, traces, { ...layout, template: styled(data.theme), autosize: true }, { displayModeBar: false, responsive: true, staticPlot: still });
}
async function drawAll() {
  for (const box of all("[data-figure]")) { await draw(box); await breath(); }
  document.documentElement.dataset.drawn = "true";
}
async function unpack() {
  const packed = new Blob([bytes(document.getElementById("plotly").textContent)]).stream();
  const script = document.createElement("script");
  script.textContent = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script); // runs at once
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
for (const choice of all("select")) choice.onchange = () => {
  const box = choice.parentElement.querySelector("[data-figure]");
  box.dataset.figure = choice.value;
  box.style.height = `${data.figures[choice.value].layout.height}px`;
  draw(box);
};

// ------------------------------------------------------------------ videos
// Blobs and not data URIs: some browsers seek only in those.
for (const film of all("video")) film.src = URL.createObjectURL(new Blob([bytes(data.videos[film.dataset.video])], { type: "video/mp4" }));
const toggle = (film) => (film.paused ? film.play() : film.pause());
const takes = all(".takes video");
for (const film of takes) { film.loop = true; film.onclick = () => toggle(film); }
for (const button of all("#play")) button.onclick = () => {
  const start = takes.every((film) => film.paused);
  for (const film of takes) if (start) { film.currentTime = 0; film.play(); } else film.pause();
};

// ------------------------------------------------------------------ a curve and its video
function follow(panel, { value, return: returns, advantage, positive, fps }) {
  const film = panel.querySelector("video"), scrub = panel.querySelector(".scrub"), button = panel.querySelector(".play");
  const cursor = panel.querySelector(".cursor"), readout = panel.querySelector(".readout"), count = value.length;
  const [left, right] = data.axis;
  let now = 0;
  const show = (frame) => {
    now = Math.max(0, Math.min(count - 1, Math.floor(frame)));
    const at = Math.max(0, Math.min(1, (frame === now ? now + 0.5 : frame) / count)); // every frame is as wide
    cursor.style.left = `calc(${left}px + (100% - ${left + right}px) * ${at.toFixed(5)})`;
    scrub.setAttribute("aria-valuenow", now);
    readout.innerHTML = `<b>${(now / fps).toFixed(1)} s</b>, frame ${now}<br>V <b>${signed(value[now])}</b>, return ${signed(returns[now])}<br>` +
      `A <b>${signed(advantage[now], 3)}</b> <span class="${positive[now] ? "said" : ""}">${positive[now] ? "positive" : "negative"}</span>`;
  };
  const seek = (frame) => {
    show(Math.max(0, Math.min(count - 1, frame)));
    if (film) { film.pause(); film.currentTime = (now + 0.5) / fps; } // the middle of the frame
  };
  const at = (event) => {
    const box = scrub.getBoundingClientRect();
    return Math.floor(((event.clientX - box.left - left) / (box.width - left - right)) * count);
  };
  scrub.onpointerdown = (event) => { scrub.setPointerCapture(event.pointerId); seek(at(event)); };
  scrub.onpointermove = (event) => { if (event.buttons || !film || film.paused) seek(at(event)); };
  scrub.onkeydown = (event) => {
    const frame = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: count - 1 }[event.key];
    if (frame !== undefined) { event.preventDefault(); seek(frame); }
    if (event.key === " " && film) { event.preventDefault(); toggle(film); }
  };
  if (film) {
    const run = () => { if (!film.paused) { show(film.currentTime * fps); requestAnimationFrame(run); } };
    film.onplay = () => { button.textContent = "Pause"; run(); };
    film.onpause = () => { button.textContent = "Play"; };
    button.onclick = film.onclick = () => toggle(film);
  }
  seek(0); // some browsers show nothing of a video before they are sent somewhere
}
for (const panel of all("[data-trace]")) follow(panel, data.traces[panel.dataset.trace]);

for (const nav of all("nav")) for (const { id, firstElementChild: title } of all("section")) {
  const link = document.createElement("a");
  link.href = `#${id}`;
  link.textContent = title.textContent;
  nav.append(link);
}
unpack().then(drawAll);
