// The dashboard as people see it: every page in two widths and two colour schemes, in a real browser.
//
// `scripts/browser` starts the service and says by environment variables where it is and what was planted. Whatever a
// designer, a screen reader or the browser's console would complain about is a finding, and findings fail the run.
import { readFileSync, mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const { BASE, TOKEN, USER_ID, EMAIL, DEAD_ID, OTHER_DEAD_ID, SCREENSHOTS, CHROMIUM } = process.env;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const pages = {
  overview: "/", day: "/?range=day", week: "/?range=week", users: "/users", user: `/users/${USER_ID}`,
  "sign-ups": "/sign-ups", "sign-ups-by-month": "/sign-ups?by=month", deliveries: "/deliveries",
  "dead-letters": "/queue", "dead-letter": `/queue/${DEAD_ID}`, sinks: "/sinks", sink: "/sinks/crm?state=pending",
};

const findings = [];
const expect = (truth, what) => { if (!truth) findings.push(what); };

const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });

async function visitor(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && findings.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => findings.push(`script: ${error.message}`));
  page.on("request", (request) => request.url().startsWith(BASE) || findings.push(`elsewhere: ${request.url()}`));
  return { context, page };
}

async function signIn(page) {
  await page.goto(BASE);
  await page.fill("#token", TOKEN);
  await page.keyboard.press("Enter");
  await page.waitForSelector("nav");
}

async function judge(context, page, name) {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  expect(wide <= 0, `${name}: ${wide} px wider than the window`);
  // The page's own policy lets no script in, so it comes by the debugger's door.
  const debug = await context.newCDPSession(page);
  await debug.send("Runtime.evaluate", { expression: axe });
  for (const { impact, id, nodes } of await page.evaluate(async () => (await axe.run()).violations)) {
    if (impact === "serious" || impact === "critical") {
      findings.push(`${name}: ${id}: ${nodes.slice(0, 2).map((node) => node.html.slice(0, 100)).join(" and ")}`);
    }
  }
  await debug.detach();
}

// Every page.
for (const colorScheme of ["light", "dark"]) {
  for (const width of [1200, 360]) {
    const { context, page } = await visitor({ colorScheme, viewport: { width, height: 900 } });
    const shot = async (name) => {
      if (!SCREENSHOTS) return;
      mkdirSync(SCREENSHOTS, { recursive: true });
      await page.screenshot({ path: `${SCREENSHOTS}/${name}-${colorScheme}-${width}.png`, fullPage: true });
    };
    await page.goto(`${BASE}/sign-in`);
    await judge(context, page, "sign-in");
    await shot("sign-in");
    await signIn(page);
    for (const [name, path] of Object.entries(pages)) {
      const answer = await page.goto(BASE + path);
      expect(answer.status() === 200, `${name}: status ${answer.status()}`);
      await judge(context, page, `${name} ${colorScheme} ${width}`);
      await shot(name);
    }
    await context.close();
  }
}

// What people do, by keyboard and without JavaScript.
for (const javaScriptEnabled of [true, false]) {
  const { context, page } = await visitor({ javaScriptEnabled, viewport: { width: 1000, height: 800 } });
  await signIn(page);

  await page.click("text=Users");
  await page.fill("#sought", EMAIL);
  await page.keyboard.press("Enter");
  await page.click(`a[href="/users/${USER_ID}"]`);
  expect(!(await page.content()).includes(EMAIL), "an address is shown before it was revealed");
  await page.click("button:has-text('Reveal')");
  await page.waitForSelector("text=USER_REVEALED");
  expect((await page.content()).includes(EMAIL), "a revealed address is not shown");
  expect(!page.url().includes("@"), "an address stands in the URL");

  const letter = javaScriptEnabled ? DEAD_ID : OTHER_DEAD_ID;
  await page.click("text=Dead letters");
  await page.click(`a[href="/queue/${letter}"]`);
  await page.focus("summary:has-text('Retry')");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.waitForURL(`${BASE}/queue`);
  expect(!(await page.content()).includes(letter), `${letter} is still dead after a retry`);

  await page.click("text=Sign out");
  await page.waitForURL(`${BASE}/sign-in`);
  await page.goto(BASE);
  expect(page.url() === `${BASE}/sign-in`, "signed out, and still let in");
  await context.close();
}

// The overview keeps itself fresh.
{
  const { context, page } = await visitor({});
  await signIn(page);
  const again = page.waitForRequest((request) => request.resourceType() === "fetch", { timeout: 15_000 });
  await again.catch(() => findings.push("the overview does not refresh itself"));
  await context.close();
}

await browser.close();
for (const finding of findings) console.error(`found: ${finding}`);
console.log(findings.length ? `${findings.length} findings` : `${Object.keys(pages).length} pages, nothing found`);
process.exitCode = findings.length ? 1 : 0;
