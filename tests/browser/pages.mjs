// The dashboard in a real browser: every page in two widths and two colour schemes.
//
// `scripts/browser` starts three services: one without problems, one with many problems, and one with organizations. It passes
// their addresses and the planted data in environment variables. Anything that a designer, a screen reader or the browser's
// console would complain about is a finding, and any finding fails the run.
import { readFileSync, renameSync } from "node:fs";
import { createRequire } from "node:module";
import { writeFile } from "node:fs/promises";
import { chromium } from "playwright-core";

const { BASE, WELL, GROUPED, TOKEN, USER_ID, EMAIL, PERSON_ID, DATABASE, GALLERY, EVERY_PAGE, CHROMIUM } = process.env;
const { ORGANIZATION_ID, MEMBERSHIP_ID, MEMBER_ID } = process.env;
const [letter, ...letters] = process.env.LETTERS.split(" ");
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const pages = {
  overview: `${WELL}/`, "overview-trouble": `${BASE}/`, day: `${WELL}/?range=day`, week: `${WELL}/?range=week`,
  users: `${BASE}/users`, user: `${BASE}/users/${PERSON_ID}`, nobody: `${BASE}/users/user_nobody`,
  "sign-ups": `${WELL}/sign-ups`, "sign-ups-by-week": `${WELL}/sign-ups?by=week`,
  "sign-ups-by-month": `${WELL}/sign-ups?by=month`,
  deliveries: `${BASE}/deliveries`, "no-deliveries": `${BASE}/deliveries?outcome=stale`,
  "dead-letters": `${BASE}/queue`, "no-dead-letters": `${WELL}/queue`, "dead-letter": `${BASE}/queue/${letter}`,
  sinks: `${BASE}/sinks`, sink: `${BASE}/sinks/crm`, "sink-paused": `${BASE}/sinks/newsletter`,
  organizations: `${GROUPED}/organizations`, organization: `${GROUPED}/organizations/${ORGANIZATION_ID}`,
  memberships: `${GROUPED}/organization_memberships`, member: `${GROUPED}/users/${MEMBER_ID}`,
  membership: `${GROUPED}/organization_memberships/${MEMBERSHIP_ID}`, nothing: `${GROUPED}/organizations/org_nothing`,
  nowhere: `${BASE}/nowhere`,
};
const missing = ["nobody", "nothing", "nowhere"];

// The pictures in docs/images: page, scheme, width; "?" opens the first question of the page.
const gallery = [
  ["overview", "light", 1280], ["overview", "dark", 1280], ["overview-trouble", "light", 1280],
  ["overview-trouble", "dark", 360], ["user", "light", 1280], ["sign-ups", "dark", 1280],
  ["deliveries", "dark", 360], ["dead-letters", "light", 360], ["dead-letter?", "dark", 360], ["sinks", "light", 1280],
  ["sink", "dark", 1280], ["users", "light", 360], ["sign-in", "dark", 360],
  ["organizations", "light", 360], ["organization", "light", 1280],
];

const findings = [];
const expect = (truth, what) => { if (!truth) findings.push(what); };

const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });

async function visitor(options) {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(20_000);
  const page = await context.newPage();
  // The browser reports an answer with 404 or 503 as a console error. The tests below check these answers themselves.
  page.on("console", (message) => message.type() === "error" && !/status of (404|503)/.test(message.text())
    && findings.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => findings.push(`script: ${error.message}`));
  page.on("dialog", (dialog) => { findings.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => [BASE, WELL, GROUPED].some((base) => request.url().startsWith(`${base}/`))
    || findings.push(`elsewhere: ${request.url()}`));
  return { context, page };
}

async function signIn(page, base = BASE) {
  await page.goto(base);
  await page.fill("#token", TOKEN);
  await page.keyboard.press("Enter");
  await page.waitForSelector("nav");
}

async function judge(context, page, name) {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  expect(wide <= 0, `${name}: ${wide} px wider than the window`);
  // The page's policy allows no scripts, so the debugger injects this one.
  const debug = await context.newCDPSession(page);
  await debug.send("Runtime.evaluate", { expression: axe });
  for (const { impact, id, nodes } of await page.evaluate(async () => (await axe.run()).violations)) {
    if (impact === "serious" || impact === "critical") {
      findings.push(`${name}: ${id}: ${nodes.slice(0, 2).map((node) => node.html.slice(0, 100)).join(" and ")}`);
    }
  }
  await debug.detach();
}

async function picture(context, page, name, scheme, width) {
  if (EVERY_PAGE) await page.screenshot({ path: `${EVERY_PAGE}/${name}-${scheme}-${width}.png`, fullPage: true });
  const shown = gallery.find(([of, ...how]) => of.replace("?", "") === name && `${how}` === `${[scheme, width]}`);
  if (!GALLERY || !shown) return;
  if (shown[0].endsWith("?")) {
    await page.locator("details.asking summary").last().click();
    await page.locator("details[open]").scrollIntoViewIfNeeded();
  }
  const debug = await context.newCDPSession(page);
  // The best quality that fits the limit, because every clone of the repository downloads all pictures.
  for (const quality of [80, 70, 60, 50]) {
    const { data } = await debug.send("Page.captureScreenshot", { format: "webp", quality });
    const picture = Buffer.from(data, "base64");
    await writeFile(`${GALLERY}/${name}-${scheme}-${width}.webp`, picture);
    if (picture.length < 60_000) break;
  }
  await debug.detach();
}

// Every page.
for (const colorScheme of ["light", "dark"]) {
  for (const [width, height] of [[1280, 800], [360, 740]]) {
    const { context, page } = await visitor({ colorScheme, viewport: { width, height } });
    await page.goto(`${BASE}/sign-in`);
    await judge(context, page, "sign-in");
    await picture(context, page, "sign-in", colorScheme, width);
    // A cookie is valid for all ports, so one session is enough for all services.
    await signIn(page);
    for (const [name, url] of Object.entries(pages)) {
      const answer = await page.goto(url);
      expect(answer.status() === (missing.includes(name) ? 404 : 200), `${name}: status ${answer.status()}`);
      await judge(context, page, `${name} ${colorScheme} ${width}`);
      await picture(context, page, name, colorScheme, width);
      const questions = page.locator("details.asking summary");
      for (let index = 0; index < await questions.count(); index++) await questions.nth(index).click();
      if (await questions.count()) await judge(context, page, `${name} with a question ${colorScheme} ${width}`);
    }
    await context.close();
  }
}

// The overview answers its question.
{
  const { context, page } = await visitor({});
  await signIn(page, WELL);
  const headline = () => page.textContent(".headline");
  expect((await headline()).startsWith("Yes."), `without problems, the overview says: ${await headline()}`);
  await page.goto(BASE);
  expect((await headline()).startsWith("No."), `with problems, the overview says: ${await headline()}`);
  await context.close();
}

// The operator's tasks, by keyboard and without JavaScript.
for (const javaScriptEnabled of [true, false]) {
  const { context, page } = await visitor({ javaScriptEnabled, viewport: { width: 1000, height: 800 } });
  await signIn(page);

  await page.keyboard.press("Tab");
  expect(await page.locator(":focus").textContent() === "Skip to the content", "the first stop is not the way to the content");

  await page.click("header nav >> text=Users");
  await page.fill("#sought", EMAIL);
  await page.keyboard.press("Enter");
  await page.click(`a[href="/users/${USER_ID}"]`);
  expect(!(await page.content()).includes(EMAIL), "an address is shown before it is revealed");
  await page.click("button:has-text('Reveal')");
  await page.waitForSelector("text=USER_REVEALED");
  expect((await page.content()).includes(EMAIL), "a revealed address is not shown");
  expect((await page.textContent("main")).includes("<script>alert(1)"), "a name that looks like code is not shown");
  expect(!page.url().includes("@"), "an address is in the URL");

  const [retried, discarded] = letters.splice(0, 2);
  const ask = async (letter, label) => {
    await page.click("header nav >> text=Dead letters");
    await page.click(`a[href="/queue/${letter}"]`);
    await page.focus(`summary:has-text('${label}')`);
    await page.keyboard.press("Enter");
    await page.keyboard.press("Tab");
  };
  await ask(retried, "Retry");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.waitForSelector("details.asking:not([open])");
  expect(await page.locator("details[open]").count() === 0, "there is no way out of a question");
  for (const [letter, label, told] of [[retried, "Retry", "1 delivery is retried now."], [discarded, "Discard", "1 delivery was discarded."]]) {
    await ask(letter, label);
    await page.keyboard.press("Enter");
    await page.waitForURL(`${BASE}/queue?**`);
    expect(await page.locator(`[role=status]:has-text('${told}')`).count() === 1, `${label} is not confirmed`);
    expect(!(await page.content()).includes(letter), `${letter} is still dead after: ${label}`);
    if (javaScriptEnabled) await judge(context, page, `${label}, confirmed`);
    if (EVERY_PAGE) await page.screenshot({ path: `${EVERY_PAGE}/${label.toLowerCase()}-confirmed.png` });
  }

  await page.click("text=Sign out");
  await page.waitForURL(`${BASE}/sign-in`);
  await page.goto(BASE);
  expect(page.url() === `${BASE}/sign-in`, "the dashboard is still open after signing out");
  await context.close();
}

// The overview refreshes itself, except while the user works on it.
{
  const { context, page } = await visitor({});
  await signIn(page);
  const mark = () => page.evaluate(() => document.querySelector("h1").setAttribute("data-old", ""));
  const refreshed = (timeout) => page.waitForSelector("h1:not([data-old])", { timeout }).then(() => true, () => false);
  await mark();
  expect(await refreshed(15_000), "the overview does not refresh itself");
  await page.focus("main nav a");
  await mark();
  expect(!await refreshed(7_000), "a refresh takes the focus away");
  await context.close();
}

// If the database is unavailable, every page reports it, and shows its content again afterwards.
{
  const { context, page } = await visitor({});
  await signIn(page);
  renameSync(DATABASE, `${DATABASE}.away`);
  try {
    for (const path of ["/users/user_1", "/sign-ups", "/deliveries", "/queue", "/sinks"]) {
      const answer = await page.goto(BASE + path);
      expect(answer.status() === 503, `${path} without a database: status ${answer.status()}`);
      await page.waitForSelector("h1:has-text('The database cannot be reached')");
      await judge(context, page, `${path} without a database`);
    }
    if (EVERY_PAGE) await page.screenshot({ path: `${EVERY_PAGE}/gone.png` });
    await page.goto(BASE);
    await page.waitForSelector(".headline:has-text('The database cannot be reached')");
    if (EVERY_PAGE) await page.screenshot({ path: `${EVERY_PAGE}/gone-overview.png` });
    await page.goto(`${BASE}/sinks`);
  } finally {
    renameSync(`${DATABASE}.away`, DATABASE);
  }
  await page.waitForSelector("text=warehouse").catch(() => findings.push("the page of the sinks does not recover"));
  await context.close();
}

await browser.close();
for (const finding of findings) console.error(`found: ${finding}`);
console.log(findings.length ? `${findings.length} findings` : `${Object.keys(pages).length} pages, nothing found`);
process.exitCode = findings.length ? 1 : 0;
