// Draws the charts of the report from the JSON beside it. No library: every chart is one SVG string, drawn again when its box changes width.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $$ = (id) => document.getElementById(id);
const safe = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const percent = (x) => `${Math.round(100 * x)} %`;
const signed = (x, digits = 2) => x.toFixed(digits).replace("-", "−");
const range = (n) => [...Array(n).keys()];
const line = (x1, y1, x2, y2, more = 'class="grid"') => `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" ${more}/>`;
const text = (x, y, content, more = "") => `<text x="${x}" y="${y}" ${more}>${safe(content)}</text>`;
const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / step - 1e-9);
  return range(Math.floor(high / step + 1e-9) - first + 1).map((i) => [(first + i) * step, digits]);
}
function wrap(words, characters) {
  const lines = [];
  for (const word of words.split(" "))
    if (lines.length && `${lines.at(-1)} ${word}`.length <= characters) lines[lines.length - 1] += ` ${word}`;
    else lines.push(word);
  return lines;
}
function responsive(box, draw) {
  let before = 0;
  const update = () => { if (box.clientWidth && box.clientWidth !== before) draw((before = box.clientWidth)); };
  update();
  // Drawing changes the box's height, which the observer must not meet within its own round.
  new ResizeObserver(() => requestAnimationFrame(update)).observe(box);
}
const svg = (width, height, content) => `<svg viewBox="0 0 ${width} ${height}" height="${height}" aria-hidden="true">${content}</svg>`;

// ------------------------------------------------------------------ success by iteration, controls beside it
function successCurve(box, { policies, controls }) {
  responsive(box, (W) => {
    const all = [...policies, ...controls], left = 42, right = 6, top = 18, gap = controls.length ? 0.5 : 0;
    const unit = (W - left - right) / (all.length + gap);
    const short = (label) => (unit < 58 ? label.replace("iteration", "it.") : label);
    const labels = all.map((p) => wrap(short(p.label)[0].toUpperCase() + short(p.label).slice(1), Math.max(7, Math.floor(unit / 6.6))));
    const bottom = 16 + 14 * Math.max(...labels.map((rows) => rows.length)), H = (W < 560 ? 230 : 280) + bottom;
    const ceiling = Math.min(1, Math.ceil(5 * (Math.max(...all.map((p) => p.high)) + 0.04)) / 5);
    const x = (i) => left + unit * (i + 0.5 + (i >= policies.length ? gap : 0));
    const y = (rate) => top + (1 - rate / ceiling) * (H - top - bottom);
    let out = range(Math.round(ceiling * 5) + 1).map((i) => line(left, y(i / 5), W - right, y(i / 5)) +
      text(left - 8, y(i / 5) + 4, percent(i / 5), 'text-anchor="end" class="faint"')).join("");
    if (controls.length) {
      const middle = left + unit * (policies.length + gap / 2), last = policies.at(-1);
      out += line(middle, top - 8, middle, H - 12, 'class="grid" stroke-dasharray="2 4"');
      if (last) out += line(x(policies.length - 1), y(last.rate), W - right, y(last.rate), 'stroke="var(--policy)" stroke-dasharray="3 4" opacity="0.6"');
      out += text(W - right, top - 6, "controls", 'text-anchor="end" class="faint"');
    }
    out += `<path d="${path(policies.map((p, i) => [x(i), y(p.rate)]))}" fill="none" stroke="var(--policy)" stroke-width="2" opacity="0.45"/>`;
    all.forEach((p, i) => {
      const control = i >= policies.length, colour = control ? "var(--control)" : "var(--policy)", cx = x(i);
      const rises = i + 1 < policies.length && policies[i + 1].rate >= p.rate; // keep the number off the line to the next point
      const cap = (v) => line(cx - 6, y(v), cx + 6, y(v), `stroke="${colour}" stroke-width="2"`);
      out += `<g><title>${safe(p.name)}: ${p.k} of ${p.n}, ${percent(p.low)} to ${percent(p.high)}</title>` +
        line(cx, y(p.low), cx, y(p.high), `stroke="${colour}" stroke-width="2"`) + cap(p.low) + cap(p.high) +
        `<circle cx="${cx}" cy="${y(p.rate)}" r="6" fill="${control ? "var(--card)" : colour}" stroke="${colour}" stroke-width="2.5"/></g>` +
        text(cx + 12, y(p.rate) + (rises ? 18 : -7), percent(p.rate), 'class="strong"');
      labels[i].forEach((words, row) => {
        out += text(cx, H - bottom + 20 + 14 * row, words, 'text-anchor="middle"');
      });
    });
    box.innerHTML = svg(W, H, out);
  });
}

// ------------------------------------------------------------------ advantages by source, ε
function histograms(box, choice, all) {
  let current = all.length - 1;
  const draw = (W) => {
    const { edges, groups, epsilon } = all[current];
    const left = 2, right = 2, rowHeight = 104, chart = 66, top = 26, H = top + groups.length * rowHeight + 26;
    const low = edges[0], high = edges.at(-1), x = (v) => left + ((v - low) / (high - low)) * (W - left - right);
    const tallest = Math.max(...groups.flatMap((g) => g.share));
    let names = "", out = epsilon === null ? "" : `<clipPath id="above"><rect x="${x(epsilon)}" y="0" width="${Math.max(0, W - x(epsilon))}" height="${H}"/></clipPath>`;
    groups.forEach((g, row) => {
      const base = top + row * rowHeight + 24 + chart, colour = `var(--${g.name})`;
      const points = g.share.flatMap((s, i) => [edges[i], edges[i + 1]].map((e) => [x(e), base - (s / tallest) * chart]));
      const area = `${path([[x(low), base], ...points, [x(high), base]])}Z`;
      const name = g.name === "demonstration" ? "Demonstrations" : g.name === "correction" ? "Corrections" : `Rollouts that ${g.name === "success" ? "succeeded" : "failed"}`;
      out += `<path d="${area}" fill="${colour}" opacity="0.25"/>` +
        (epsilon === null ? "" : `<path d="${area}" fill="${colour}" opacity="0.85" clip-path="url(#above)"/>`) + line(left, base, W - right, base);
      names += text(left, base - chart - 8, name, 'class="strong"') +
        text(W - right, base - chart - 8, `${percent(g.positive)} positive · ${g.frames.toLocaleString("en")} frames`, 'text-anchor="end"');
    });
    if (epsilon !== null) {
      const side = x(epsilon) > W - 90 ? ['end', -6] : ['start', 6];
      out += line(x(epsilon), 14, x(epsilon), H - 24, 'stroke="var(--ink)" stroke-width="1.2"') +
        text(x(epsilon) + side[1], 14, `ε = ${signed(epsilon, 3)}`, `text-anchor="${side[0]}" class="strong"`);
    }
    out += names; // over the line of ε
    for (const [v, digits] of ticks(low, high, W / 110)) out += text(x(v), H - 6, signed(v, digits), 'text-anchor="middle" class="faint"');
    box.innerHTML = svg(W, H, out);
  };
  responsive(box, draw);
  if (choice) {
    choice.value = current;
    choice.onchange = () => { current = Number(choice.value); draw(box.clientWidth); };
  }
}

// ------------------------------------------------------------------ value over time, frames under it
function valueTrace(panel, trace, fps, low, colour) {
  const plot = panel.querySelector(".plot"), chart = panel.querySelector(".chart"), strip = panel.querySelector(".strip");
  const frame = panel.querySelector(".frame"), readout = panel.querySelector(".readout");
  const n = trace.value.length, left = 38, right = 4, sheet = trace.strip;
  let W = 0, now = Math.round((n - 1) / 2), thumbs = [];
  const x = (t) => left + (t / Math.max(1, n - 1)) * (W - left - right);
  if (sheet) {
    panel.style.setProperty("--sheet", `url(${sheet.image})`);
    panel.style.setProperty("--across", `${100 * sheet.columns}%`);
    frame.style.aspectRatio = `${sheet.width} / ${sheet.height}`;
  } else frame.remove();
  const rows = sheet ? Math.ceil(sheet.frames.length / sheet.columns) : 1;
  const nearest = (t) => sheet.frames.reduce((best, f, i) => (Math.abs(f - t) < Math.abs(sheet.frames[best] - t) ? i : best), 0);
  const place = (element, t) => {
    const i = nearest(t), share = (k, count) => (count > 1 ? (100 * k) / (count - 1) : 0);
    element.style.backgroundPosition = `${share(i % sheet.columns, sheet.columns)}% ${share(Math.floor(i / sheet.columns), rows)}%`;
  };
  const show = (t) => {
    now = Math.max(0, Math.min(n - 1, t));
    if (sheet) place(frame, now);
    readout.innerHTML = `<b>${(now / fps).toFixed(1)} s</b> · step ${now}<br>V = <b>${signed(trace.value[now])}</b><br>return ${signed(trace.return[now])}<br>${trace.positive[now] ? "<b>positive</b>" : "negative"}`;
    const cursor = chart.querySelector(".cursor");
    cursor.setAttribute("transform", `translate(${x(now).toFixed(1)} 0)`);
    cursor.querySelector("circle").setAttribute("cy", cursor.dataset.scale ? y(trace.value[now]) : 0);
    thumbs.forEach(([element, from, to]) => element.classList.toggle("now", now >= from && now < to));
  };
  const H = 178, top = 8, bottom = 34, y = (v) => top + (v / low) * (H - top - bottom);
  responsive(plot, (width) => {
    W = width;
    let out = ticks(low, 0, 6).map(([v, digits]) => line(left, y(v), W - right, y(v)) + text(left - 6, y(v) + 4, signed(v, digits), 'text-anchor="end" class="faint"')).join("");
    for (const [s, digits] of ticks(0, (n - 1) / fps, W / 80)) out += text(x(s * fps), H - 4, `${s.toFixed(digits)} s`, 'text-anchor="middle" class="faint"');
    const step = (W - left - right) / Math.max(1, n - 1);
    trace.positive.forEach((p, t) => { if (p) out += `<rect x="${Math.max(left, x(t) - step / 2).toFixed(1)}" y="${H - bottom + 5}" width="${(t ? step + 0.3 : step / 2).toFixed(1)}" height="5" fill="var(--policy)"/>`; });
    out += `<path d="${path(trace.return.map((v, t) => [x(t), y(v)]))}" fill="none" stroke="var(--faint)" stroke-width="1.3" stroke-dasharray="4 4"/>`;
    out += `<path d="${path(trace.value.map((v, t) => [x(t), y(v)]))}" fill="none" stroke="${colour}" stroke-width="2.2" stroke-linejoin="round"/>`;
    out += `<g class="cursor" data-scale="1">${line(0, top, 0, H - bottom + 10, 'stroke="var(--ink)"')}<circle r="4.5" fill="${colour}" stroke="var(--card)" stroke-width="2"/></g>`;
    chart.innerHTML = svg(W, H, out);
    strip.innerHTML = "";
    thumbs = [];
    if (sheet) {
      const count = Math.max(3, Math.min(n, Math.round((W - left) / 62)));
      strip.style.marginLeft = `${left}px`;
      thumbs = range(count).map((i) => {
        const element = strip.appendChild(document.createElement("i"));
        element.style.aspectRatio = `${sheet.width} / ${sheet.height}`;
        place(element, Math.round(((i + 0.5) * (n - 1)) / count));
        return [element, (i * n) / count, ((i + 1) * n) / count];
      });
    }
    show(now);
  });
  plot.addEventListener("pointermove", (event) => {
    const at = event.clientX - plot.getBoundingClientRect().left;
    show(Math.round(((at - left) / (W - left - right)) * (n - 1)));
  });
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(now + step); }
  });
}

// ------------------------------------------------------------------ losses
function lossCurve(box, { step, loss }) {
  responsive(box, (W) => {
    const H = 124, left = 40, right = 14, top = 6, bottom = 20;
    const log = Math.min(...loss) > 0 && Math.max(...loss) > 10 * Math.min(...loss), f = log ? Math.log10 : (v) => v;
    let low = f(Math.min(...loss)), high = f(Math.max(...loss));
    if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
    const x = (s) => left + ((s - step[0]) / (step.at(-1) - step[0] || 1)) * (W - left - right);
    const y = (v) => top + (1 - (f(v) - low) / (high - low)) * (H - top - bottom);
    const marks = log ? range(3).map((i) => [10 ** (low + (i * (high - low)) / 2)]) : ticks(low, high, 3);
    let out = marks.map(([v, digits]) => line(left, y(v), W - right, y(v)) +
      text(left - 6, y(v) + 4, log ? v.toPrecision(2) : signed(v, digits), 'text-anchor="end" class="faint"')).join("");
    for (const [s, digits] of ticks(step[0], step.at(-1), W / 90)) out += text(x(s), H - 4, s.toFixed(digits), 'text-anchor="middle" class="faint"');
    out += `<path d="${path(loss.map((v, i) => [x(step[i]), y(v)]))}" fill="none" stroke="var(--policy)" stroke-width="1.6" stroke-linejoin="round"/>`;
    box.innerHTML = svg(W, H, out);
  });
}

// ------------------------------------------------------------------ put them in their places
if ($$("curve")) successCurve($$("curve"), data.curve);
if ($$("histogram")) histograms($$("histogram"), $$("histogram-choice"), data.advantage);
if (data.values) {
  const shown = ["success", "failure"].filter((outcome) => data.values[outcome]);
  const low = Math.min(-0.1, ...shown.flatMap((o) => [...data.values[o].value, ...data.values[o].return]));
  for (const outcome of shown) valueTrace($$(`trace-${outcome}`), data.values[outcome], data.values.fps, low, `var(--${outcome})`);
}
data.losses.forEach((curve, i) => lossCurve($$(`loss-${i}`), curve));
const films = [...document.querySelectorAll("video")];
for (const film of films) film.onclick = () => (film.paused ? film.play() : film.pause());
if ($$("play")) $$("play").onclick = () => {
  const start = films.every((film) => film.paused);
  for (const film of films) if (start) { film.currentTime = 0; film.play(); } else film.pause();
};
