//! API tokens.

use witan_kernel::port::{Answer, Changed, TOKENS, Token, TokenStore, rules};

use super::{MemoryMetadata, after};

impl TokenStore for MemoryMetadata {
    fn create_token(&self, token: Token, of_tenant: Option<usize>) -> Answer<()> {
        self.answer(move |state| {
            rules::token(&token)?;
            if state.tokens.contains_key(&token.id) {
                return Err(rules::token_exists(&token.id));
            }
            if state.tokens.len() >= TOKENS {
                return Err(rules::too_many_tokens());
            }
            if let (Some(tenant), Some(most)) = (&token.tenant, of_tenant)
                && state.tokens.values().filter(|known| known.tenant.as_ref() == Some(tenant)).count() >= most
            {
                return Err(rules::too_many_tokens_of(tenant, most));
            }
            state.tokens.insert(token.id.clone(), token);
            state.changed(Changed::Tokens);
            Ok(())
        })
    }

    fn token(&self, id: &str) -> Answer<Option<Token>> {
        let id = id.to_owned();
        self.answer(move |state| Ok(state.tokens.get(&id).cloned()))
    }

    fn tokens(&self, last: Option<&str>, limit: u32) -> Answer<Vec<Token>> {
        let last = last.map(str::to_owned);
        self.answer(move |state| {
            let page = state.tokens.range(after(last)).take(rules::page(limit) as usize);
            Ok(page.map(|(_, token)| token.clone()).collect())
        })
    }

    fn remove_token(&self, id: &str) -> Answer<()> {
        let id = id.to_owned();
        self.answer(move |state| {
            state.tokens.remove(&id).ok_or_else(|| rules::no_token(&id))?;
            state.changed(Changed::Tokens);
            Ok(())
        })
    }
}
