// Exits with 0 if the server accepts writes. The first call makes it a replica set of one, because only replica sets have
// transactions.
const password = require("fs").readFileSync("/run/secrets/mongodb-root-password", "utf8").trim();
const here = connect(`mongodb://root:${encodeURIComponent(password)}@127.0.0.1:27017/admin?directConnection=true`);
try {
  here.adminCommand({ replSetGetStatus: 1 });
} catch {
  here.adminCommand({ replSetInitiate: { _id: "rs0", members: [{ _id: 0, host: "mongodb:27017" }] } });
}
quit(here.hello().isWritablePrimary ? 0 : 1);
